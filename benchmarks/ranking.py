"""Which sparse attention comes nearest to full attention, at equal entries and at equal time?

    python benchmarks/ranking.py [--question entries|learning|cost|time] [--keep FOLDER]
    python benchmarks/ranking.py --check FEATURES

4096 sites with 16 features of one length and values to copy: a photograph on which the far field
was judged while it was made (coffee) and one on which nothing was (tissue), a recording, a clip,
and points, numbered along their kd-tree; queries are keys. Every method has the scale 1/sqrt(d). A
temperature sets how many keys share the attention of a query: the exponential of its mean entropy
is 1024, 128 or 16. Nothing is tuned to these features: each method has one family of settings
(benchmarks/entrants.py), of which the largest within the budget is taken; if what is read depends
on the features, at each temperature. Methods that are causal by definition are compared with
causal full attention, on the recording.

entries: budget 304 entries of the affinity matrix a query: GPA(12) with blocks of 4.
time: budget 4 times the processor time of that GPA(12), forward and backward, measured in turn
with it (once to find the setting; what is reported is of the least of three rounds).
cost: what the settings of equal entries cost.
Columns: `setting`; `entries/query`, the most at any temperature; `error_K` relative error of the
outputs (root mean square) where K keys share the attention; `time/GPA` processor time of forward
and backward over that of GPA(12); `memory/tensors` the most that torch's allocator held in forward
and backward over the bytes of query, key, value and output.

learning: a layer learns to copy from afar. Each of 16x16 sites of a context holds a random texture
and a message; the queries see the texture moved by half of the picture, give or take two rows and
columns (a number that is not known, and fixed for a seed), and have to give the message that stands
where the context looks alike. Budget 64 entries a query, of 256; 200 steps, three seeds; `error`
relative error on textures and messages that were not seen, mean, lowest and highest. Methods whose
settings depend on the features do not take part.

A run that was cut off goes on in its folder. Errors depend on seeds alone: `--check FEATURES` (or
"learning") measures them again and compares them with the committed file to three digits.
"""

import argparse
import json
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from entrants import ADAPTIVE, CAUSAL, ENTRANTS, LEARNT, Call, Family, Place, Setting, Settings
from materials import SEED, Material, clip, photograph, points, sound
from measure import RESULTS, write
from operators import SHARED_BY, shared_by
from ranking_plots import draw
from row_file import RowFile
from skimage import data
from torch import Tensor, nn
from tqdm import tqdm

import ndgpa
from ndgpa.analysis import peak_bytes

Row = dict[str, Any]
Key = tuple[str, ...]
BUDGET, TIMES, ROUNDS, SLOW = 304, 4, 3, 12
SIDE, MESSAGE, SMALL_BUDGET = 16, 4, 64
STEPS, BATCH, RATE, SEEDS = 200, 4, 1e-2, (0, 1, 2)
NAMES = {
    "entries": ("features", "attention"),
    "learning": ("attention",),
    "cost": ("features", "attention"),
    "time": ("features", "attention"),
}
QUESTIONS = ("entries", "learning", "cost", "time")
FEATURES: dict[str, tuple[str, tuple[int, ...], Callable[[], Material]]] = {
    "coffee": ("image", (64, 64), lambda: photograph(data.coffee())),
    "tissue": ("image", (64, 64), lambda: photograph(data.immunohistochemistry())),
    "recording": ("sequence", (4096,), lambda: sound("training-2")),
    "clip": ("video", (16, 16, 16), lambda: clip("carphone_pristine")),
    "points": ("points", (4096,), lambda: points(in_order=True)),
}
TIMED = ("tissue", "recording", "points", "clip")


def main(questions: tuple[str, ...], folder: Path, measuring: bool) -> None:
    torch.set_num_threads(1)
    for question in questions:
        rows = RowFile(folder / f"{question}.jsonl")
        for key in tqdm(KEYS[question]() if measuring else (), desc=question):
            if rows.wants(key):
                rows.begin(key)
                torch.manual_seed(SEED)
                rows.end(key, MEASURES[question](*key))
        report(question, rows.rows())


def report(question: str, rows: list[Row]) -> None:
    rows = [{**dict(zip(NAMES[question], row.pop("key"))), **row} for row in rows]
    rows.sort(key=place_in_table)
    asked = (__doc__ or "").splitlines()[0]
    if rows:
        write(f"ranking_{question}", f"{asked} ({question})", rows, seed=SEED)
        draw(question, rows)


def place_in_table(row: Row) -> tuple[int, int]:
    names = list({**ENTRANTS, **LEARNT, **CAUSAL})
    return list(FEATURES).index(row.get("features", "coffee")), names.index(row["attention"])


def check(part: str) -> bool:
    """Measure errors again and compare them with the committed file to three digits."""
    question, keys = "learning", list(learners())
    if part != "learning":
        question = "entries"
        keys = [key for key in KEYS[question]() if key[0] == part]
    committed = json.loads((RESULTS / f"ranking_{question}.json").read_text())["rows"]
    wanted = {tuple(row[name] for name in NAMES[question]): row for row in committed}
    agree = True
    for key in keys:
        torch.manual_seed(SEED)
        row = MEASURES[question](*key)
        for name in (name for name in row if name.startswith(("error", "lowest", "highest"))):
            same = f"{row[name]:.3g}" == f"{wanted[key][name]:.3g}"
            agree = agree and same
            said = "agrees" if same else f"DIFFERS from {wanted[key][name]:.3g}"
            print(*key, name, f"{row[name]:.3g}", said)
    return agree


# What competes where


@cache
def place_of(features: str, keys: int) -> tuple[Place, Material]:
    """Features at the temperature at which that many keys share the attention."""
    kind, shape, make = FEATURES[features]
    found = cache_of(make)
    x = shared_by(keys, found.features)
    return Place(kind, shape, x, found.space), replace(found, features=x)


@cache
def cache_of(make: Callable[[], Material]) -> Material:
    return make()


def family_of(name: str) -> Family:
    return {**ENTRANTS, **CAUSAL, **LEARNT}[name]


@cache
def settings_of(features: str, name: str, keys: int) -> Settings:
    return family_of(name)(place_of(features, keys)[0])


def competitors(features: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for one in features:
        others = CAUSAL if FEATURES[one][0] == "sequence" else {}
        for name in (*ENTRANTS, *others):
            if settings_of(one, name, SHARED_BY[1]):
                yield one, name


# At equal entries and at equal time


def at_equal_entries(features: str, name: str) -> Row:
    chosen = {keys: at_budget(features, name, keys) for keys in temperatures(name)}
    return row_of(features, name, chosen)


def at_budget(features: str, name: str, keys: int) -> Setting | None:
    return largest(settings_of(features, name, keys), lambda s: s.entries, BUDGET)


def at_equal_time(features: str, name: str) -> Row:
    chosen = {
        keys: largest(
            settings_of(features, name, keys),
            lambda s, keys=keys: time_over_gpa(s, features, keys, rounds=1),
            TIMES,
        )
        for keys in temperatures(name)
    }
    row = row_of(features, name, chosen)
    middle = chosen[SHARED_BY[1]]
    if "error_16" in row and middle is not None:
        row["time/GPA"] = time_over_gpa(middle, features, SHARED_BY[1])
    return row


def costed() -> Iterator[Key]:
    """An image, and what is causal on a sequence: cost hardly depends on the features."""
    for features, name in competitors(("tissue", "recording")):
        if (name in CAUSAL) == (features == "recording"):
            yield features, name


def cost(features: str, name: str) -> Row:
    setting = at_budget(features, name, SHARED_BY[1])
    assert setting is not None
    return {
        "features": features,
        "attention": name,
        "setting": setting.text,
        "entries/query": setting.entries,
        "time/GPA": time_over_gpa(setting, features, SHARED_BY[1]),
        "memory/tensors": memory_of(setting, features),
    }


def temperatures(name: str) -> tuple[int, ...]:
    """Those at which a setting is chosen: one for all, where what is read does not depend on it."""
    return SHARED_BY if name in ADAPTIVE else SHARED_BY[1:2]


def largest(settings: Settings, cost: Callable[[Setting], float], budget: float) -> Setting | None:
    """The last setting within the budget; full attention takes part as what it is."""
    if settings[0].text == "-":
        return settings[0]
    if cost(settings[0]) > budget:
        return None
    return settings[bisect_right(settings, budget, lo=1, key=cost) - 1]


def row_of(features: str, name: str, chosen: dict[int, Setting | None]) -> Row:
    row: Row = {"features": features, "attention": name}
    if None in chosen.values():
        return {**row, "setting": "none within the budget"}
    texts = dict.fromkeys(s.text for s in chosen.values() if s)
    row["setting"] = " / ".join(texts)
    row["entries/query"] = max(s.entries for s in chosen.values() if s)
    middle = chosen[SHARED_BY[1]]
    for keys in SHARED_BY:
        setting = chosen.get(keys, middle)
        assert setting is not None
        row[f"error_{keys}"] = error_of(setting, features, keys, name in CAUSAL)
    return row


def error_of(setting: Setting, features: str, keys: int, causal: bool) -> float:
    found = place_of(features, keys)[1]
    wanted = wanted_of(features, keys, causal)
    with torch.no_grad():
        out = setting.call(found.features, found.features, found.value)
        return float((out - wanted).norm() / wanted.norm())


@cache
def wanted_of(features: str, keys: int, causal: bool) -> Tensor:
    place, found = place_of(features, keys)
    with torch.no_grad():
        x = found.features
        return ndgpa.Full(causal=causal)(x, x, found.value, place.space(4, 1))


# Cost


def inputs_of(found: Material) -> list[Tensor]:
    x, value = found.features, found.value
    return [y.contiguous().requires_grad_() for y in (x.clone(), x.clone(), value.clone())]


def both(call: Call, inputs: list[Tensor]) -> None:
    out = call(*inputs)
    if out.requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)


def memory_of(setting: Setting, features: str) -> float:
    inputs = inputs_of(place_of(features, SHARED_BY[1])[1])
    tensors = sum(x.nbytes for x in inputs) + inputs[2].nbytes
    return peak_bytes(lambda: both(setting.call, inputs)) / tensors


def time_over_gpa(setting: Setting, features: str, keys: int, rounds: int = ROUNDS) -> float:
    """Processor time over that of GPA(12), the least of a few rounds taken in turn."""
    place, found = place_of(features, keys)
    inputs, plain, space = inputs_of(found), ndgpa.GPA(12), place.space(4, 1)
    ours, base = [], []
    for _ in range(rounds):
        base.append(seconds(lambda *x: plain(*x, space), inputs))
        ours.append(seconds(setting.call, inputs))
        if min(ours) > SLOW * min(base):
            break
    return min(ours) / min(base)


def seconds(call: Call, inputs: list[Tensor]) -> float:
    start = time.process_time()
    both(call, inputs)
    return time.process_time() - start


# Learning


def learning(name: str) -> Row:
    setting = setting_to_learn(name)
    assert setting is not None
    errors = [error_after_learning(setting.call, seed) for seed in SEEDS]
    return {
        "attention": name,
        "setting": setting.text,
        "entries/query": setting.entries,
        "error": statistics.mean(errors),
        "lowest": min(errors),
        "highest": max(errors),
    }


def learners() -> Iterator[Key]:
    for name in (*ENTRANTS, *LEARNT):
        if name not in ADAPTIVE and setting_to_learn(name) is not None:
            yield (name,)


def setting_to_learn(name: str) -> Setting | None:
    sides = {1: 1, 4: 2, 16: 4}
    place = Place(
        "image",
        (SIDE, SIDE),
        torch.zeros(1, 2, SIDE**2, 16),
        lambda block, cell: ndgpa.Image((SIDE, SIDE), sides[block], sides[cell]),
    )
    settings = family_of(name)(place)
    return largest(settings, lambda s: s.entries, SMALL_BUDGET) if settings else None


class Called:
    """An operator of a setting, which has its structures already."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.call(query, key, value)


def error_after_learning(call: Call, seed: int) -> float:
    torch.manual_seed(seed)
    moved = tuple(torch.randint(SIDE // 2 - 2, SIDE // 2 + 3, (2,)).tolist())
    image = ndgpa.Image((SIDE, SIDE), block=2)
    layer = ndgpa.nn.SpatialAttention(
        32, heads=2, key_dim=32 + MESSAGE, value_dim=32, out_dim=MESSAGE, operator=Called(call)
    )
    describe = nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular")
    optimizer = torch.optim.Adam([*layer.parameters(), *describe.parameters()], RATE)
    draws = torch.Generator().manual_seed(seed)

    def error_of(count: int) -> Tensor:
        texture, message = texture_of(count, draws), randn(count, MESSAGE, draws)
        context = torch.cat([describe(texture), message], dim=1).flatten(2).mT
        query = describe(texture.roll(moved, dims=(2, 3))).flatten(2).mT
        wanted = message.roll(moved, dims=(2, 3)).flatten(2).mT
        out = layer(query, image, context, image)
        return (out - wanted).square().sum() / wanted.square().sum()

    for _ in range(STEPS):
        optimizer.zero_grad()
        error_of(BATCH).backward()
        optimizer.step()
    with torch.no_grad():
        return float(error_of(32).sqrt())


def texture_of(count: int, draws: torch.Generator) -> Tensor:
    """Noise of three channels, smoothed over 3x3 sites, of unit variance."""
    noise = nn.functional.pad(randn(count, 3, draws), (1, 1, 1, 1), mode="circular")
    return 3 * nn.functional.avg_pool2d(noise, 3, stride=1)


def randn(count: int, channels: int, draws: torch.Generator) -> Tensor:
    return torch.randn(count, channels, SIDE, SIDE, generator=draws)


KEYS: dict[str, Callable[[], Iterator[Key]]] = {
    "entries": lambda: competitors(tuple(FEATURES)),
    "time": lambda: (
        (features, name) for features in TIMED for _, name in competitors((features,))
    ),
    "learning": learners,
    "cost": costed,
}
MEASURES: dict[str, Callable[..., Row]] = {
    "entries": at_equal_entries,
    "time": at_equal_time,
    "learning": learning,
    "cost": cost,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", choices=QUESTIONS)
    parser.add_argument("--keep", type=Path, default=Path("runs/ranking"))
    parser.add_argument("--now", action="store_true", help="report what the folder has")
    parser.add_argument("--check", choices=(*FEATURES, "learning"))
    arguments = parser.parse_args()
    if arguments.check is not None:
        torch.set_num_threads(1)
        sys.exit(not check(arguments.check))
    asked = QUESTIONS if arguments.question is None else (arguments.question,)
    main(asked, arguments.keep, measuring=not arguments.now)
