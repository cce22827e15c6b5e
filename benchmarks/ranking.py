"""Which sparse attention comes nearest to full attention, at equal entries and at equal time?

    python benchmarks/ranking.py [--only entries|time|learning] [--quick]

4096 sites with 16 features of one length and values to copy: photographs (scikit-image's coffee and
rocket), a recording, a clip, and points; queries are keys. Every method has the scale 1/sqrt(d). A
temperature sets how many keys share the attention of a query: the exponential of its mean entropy
is 1024, 128 or 16. Nothing is tuned to these features: each method has one family of settings
(benchmarks/entrants.py), of which the largest within the budget is taken. Methods that are causal
by definition are compared with causal full attention, on the recording.

entries: budget 304 entries of the affinity matrix a query, what GPA(12) computes with blocks of 4.
time: budget the processor time of GPA(12) forward and backward, in the same run.
Columns: `setting`; `entries/query`; `error_K` relative error of the outputs (root mean square)
where K keys share the attention; `time/GPA` forward and backward over that of GPA(12);
`memory/tensors` the most that torch's allocator held in forward and backward over the bytes of
query, key, value and output.

learning: a layer learns to copy from afar. 16x16 sites hold a random texture, which the context
holds moved by an unknown, fixed number of rows and columns; the layer sees, of every site, its own
surroundings as query, and has to give what stands where the context looks alike. 300 steps,
three seeds; `error` relative error on textures that were not seen, mean, lowest and highest.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from entrants import CAUSAL, ENTRANTS, Call, Place, Setting
from materials import SEED, Material, clip, photograph, points, sound
from measure import write
from operators import SHARED_BY, shared_by
from skimage import data
from torch import Tensor, nn
from tqdm import tqdm

import ndgpa
from ndgpa.analysis import peak_bytes

BUDGET, ROUNDS = 304, 3
SIDE, STEPS, SEEDS, KEPT = 16, 300, (0, 1, 2), 4


def main(only: str | None, quick: bool) -> None:
    torch.manual_seed(SEED)
    question = (__doc__ or "").splitlines()[0]
    for name, measure in (
        ("entries", at_equal_entries),
        ("time", at_equal_time),
        ("learning", learning),
    ):
        if only in (None, name):
            rows = list(measure(quick))
            if not quick:
                write(f"ranking_{name}", f"{question} ({name})", rows, seed=SEED)
            for row in rows:
                print(row)


# Features


def places(quick: bool) -> Iterator[tuple[str, Material, Place]]:
    made: dict[str, tuple[str, tuple[int, ...], Callable[[], Material]]] = {
        "coffee": ("image", (64, 64), lambda: photograph(data.coffee())),
        "rocket": ("image", (64, 64), lambda: photograph(data.rocket())),
        "sound": ("sequence", (4096,), sound),
        "video": ("video", (16, 16, 16), clip),
        "points": ("points", (4096,), points),
    }
    for name, (kind, shape, make) in made.items():
        if not quick or name == "sound":
            found = make()
            features = tempered(SHARED_BY[1], found)
            yield name, found, Place(kind, shape, features, found.space)


# Errors


def at_equal_entries(quick: bool) -> Iterator[dict[str, Any]]:
    for name, found, place in places(quick):
        for entrants, exact in rounds(place):
            plain = seconds_of(first_setting(entrants, place, BUDGET).call, found)
            for title, settings in tqdm(entrants.items(), desc=f"{name}, entries"):
                setting = largest(settings(place), BUDGET)
                if setting is not None:
                    yield row_of(name, title, setting, found, exact, plain)


def at_equal_time(quick: bool) -> Iterator[dict[str, Any]]:
    for name, found, place in places(quick):
        for entrants, exact in rounds(place):
            plain = seconds_of(first_setting(entrants, place, BUDGET).call, found)
            for title, settings in tqdm(entrants.items(), desc=f"{name}, time"):
                setting = slowest_within(settings(place), found, plain)
                if setting is not None:
                    yield row_of(name, title, setting, found, exact, plain)


def rounds(place: Place) -> list[tuple[dict[str, Any], Any]]:
    """Who competes with whom, and the attention that they approximate."""
    found: list[tuple[dict[str, Any], Any]] = [(ENTRANTS, ndgpa.Full())]
    if place.kind == "sequence":
        found.append((CAUSAL, ndgpa.Full(causal=True)))
    return found


def first_setting(entrants: dict[str, Any], place: Place, budget: float) -> Setting:
    """GPA of blocks of 4, which stands first, at the budget."""
    setting = largest(next(iter(entrants.values()))(place), budget)
    assert setting is not None
    return setting


def largest(settings: Iterator[Setting], budget: float) -> Setting | None:
    """The last setting within the budget; full attention takes part as what it is."""
    within = None
    for setting in settings:
        if setting.entries <= budget or setting.text == "-":
            within = setting
    return within


def slowest_within(settings: Iterator[Setting], found: Material, budget_s: float) -> Setting | None:
    within = None
    for setting in settings:
        if setting.text == "-":
            return setting
        if seconds_of(setting.call, found) > 1.05 * budget_s:
            break
        within = setting
    return within


def row_of(
    name: str, title: str, setting: Setting, found: Material, exact: Any, plain_s: float
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "features": name,
        "attention": title,
        "setting": setting.text,
        "entries/query": setting.entries,
    }
    space = found.space(4, 1)
    for k in SHARED_BY:
        x = tempered(k, found)
        with torch.no_grad():
            wanted = exact(x, x, found.value, space)
            row[f"error_{k}"] = float(
                (setting.call(x, x, found.value) - wanted).norm() / wanted.norm()
            )
    row["time/GPA"] = seconds_of(setting.call, found) / plain_s
    inputs = inputs_of(found)
    tensors = sum(x.nbytes for x in inputs) + inputs[2].nbytes
    row["memory/tensors"] = peak_bytes(lambda: both(setting.call, inputs)) / tensors
    return row


TEMPERED: dict[tuple[int, int], Tensor] = {}


def tempered(keys: int, found: Material) -> Tensor:
    """`shared_by`, once for each features."""
    place = (keys, id(found))
    if place not in TEMPERED:
        TEMPERED[place] = shared_by(keys, found.features)
    return TEMPERED[place]


# Cost


def inputs_of(found: Material) -> list[Tensor]:
    x = tempered(SHARED_BY[1], found)
    return [y.contiguous().requires_grad_() for y in (x.clone(), x.clone(), found.value.clone())]


def both(call: Call, inputs: list[Tensor]) -> None:
    out = call(*inputs)
    if out.requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)


def seconds_of(call: Call, found: Material) -> float:
    """Median processor time of forward and backward, after one to warm up."""
    inputs, taken = inputs_of(found), []
    for round_ in range(ROUNDS + 1):
        start = time.process_time()
        both(call, inputs)
        if round_:
            taken.append(time.process_time() - start)
    return statistics.median(taken)


# Learning


def learning(quick: bool) -> Iterator[dict[str, Any]]:
    image = ndgpa.Image((SIDE, SIDE), block=2)
    attentions: dict[str, Any] = {
        f"GPA({KEPT})": ndgpa.GPA(KEPT),
        f'GPA({KEPT}, far="block")': ndgpa.GPA(KEPT, far="block"),
        f'GPA({KEPT}, far="site")': ndgpa.GPA(KEPT, far="site"),
        f"GPA(StraightThrough(TopK({KEPT})))": ndgpa.GPA(ndgpa.StraightThrough(ndgpa.TopK(KEPT))),
        "Full": ndgpa.Full(),
        "Neighborhood(9)": ndgpa.operators.Neighborhood(9),
        "Hydra(5), dilations 1 and 3": ndgpa.operators.Hydra.of([5], [1, 3]),
        "MultiAxis(4)": ndgpa.operators.MultiAxis(4),
        'LocalSparse("strided")': ndgpa.operators.LocalSparse("strided"),
        "Nystrom(40)": ndgpa.operators.Nystrom(40),
        "Performer(40)": ndgpa.operators.Performer(16, 40),
        "NoAttention": ndgpa.operators.NoAttention(),
    }
    for name, operator in tqdm(attentions.items(), desc="learning"):
        errors = [
            error_after_learning(operator, image, seed, 5 if quick else STEPS) for seed in SEEDS
        ]
        yield {
            "attention": name,
            "error": statistics.mean(errors),
            "lowest": min(errors),
            "highest": max(errors),
        }


def error_after_learning(operator: Any, image: ndgpa.Grid, seed: int, steps: int) -> float:
    torch.manual_seed(seed)
    moved = tuple(torch.randint(3, SIDE - 3, (2,)).tolist())
    layer = ndgpa.nn.SpatialAttention(
        32, heads=2, key_dim=32, value_dim=32, out_dim=4, operator=operator
    )
    describe = nn.Conv2d(4, 32, 3, padding=1, padding_mode="circular")
    parameters = [*layer.parameters(), *describe.parameters()]
    optimizer = torch.optim.Adam(parameters, 3e-3)

    def error_of(count: int) -> Tensor:
        wanted = torch.randn(count, 4, SIDE, SIDE)
        context = wanted.roll(moved, dims=(2, 3))
        query, key = (describe(x).flatten(2).mT for x in (wanted, context))
        out = layer(query, image, key, image)
        target = wanted.flatten(2).mT
        return (out - target).square().sum() / target.square().sum()

    for _ in range(steps):
        optimizer.zero_grad()
        error_of(8).backward()
        optimizer.step()
    layer.eval()
    with torch.no_grad():
        return float(error_of(32).sqrt())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("entries", "time", "learning"))
    parser.add_argument("--quick", action="store_true", help="the recording alone; writes nothing")
    arguments = parser.parse_args()
    main(arguments.only, arguments.quick)
