"""How near does GPA with a far field and a second look come to full attention, at what cost?

    python benchmarks/far_field.py [--quick] [--only MEASURE] [--operators REGEX]

4096 sites with 16 features of one length and values to copy, as in benchmarks/operators.py:
`astronaut`, on which the far field was developed, and what it was not: three other photographs
(scikit-image's), a recording (spectra of short windows), and a cloud of
points with colours (the surroundings of random pixels of a stereo picture, placed by their
disparity). Three temperatures: 1024, 128 and 16 keys share the attention of a query. Blocks of 4
sites, cells of one block, unless said.

errors: `entries/query` entries of the affinity matrix that are computed, and as many products of
that width as find blocks (Phase 1) and bundles; `error_K` relative error of the outputs against
full attention (root mean square) where K keys share the attention.

adaptive: one head; 12 blocks for each cell against as many as hold a share `p` of its coarse
attention, at most 32, with p such that the mean is 12 too. That share is what the near field covers
of near and far field, as far as means tell. Errors as above.

coverage: 12 blocks a cell. `share_K` the attention mass on the selected blocks over that on the
best 12 blocks of each cell, at the temperature where K keys share the attention (found by every
8th query). "By site": `estimate="site"` in every part of the rule. "Own forced": the cell's own
blocks are among the 12. Queries are the keys, so that every site finds itself in its own block.

time: at the CPU pivot, 256x256, blocks of 4x4, cells of 2x2, 12 blocks, one head of 64 channels,
float32, in processor time (which other programs on the machine disturb less): medians of
interleaved rounds, `select_ms` Phase 1 alone, `fb_ms` forward and backward, and both over those of
plain GPA.

causal: a line of 4096 sites, blocks of 4 and cells of one block, 12 blocks, two heads of 16
channels and values of 64, float32. `fb_ms` as above, and over that of GPA(12) that is not causal;
`fb_mb` the most that forward and backward allocate, in MB.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from materials import SEED, SITES, Material, materials
from measure import RESULTS, write
from operators import COMPONENTS, SHARED_BY, far_entries, shared_by
from torch import Tensor
from tqdm import tqdm

import ndgpa
from ndgpa import Bundles, Codebook, MultiLevel, Own, Refine, TopK, TopP
from ndgpa.analysis import gpa_entries, low_rank_entries, peak_bytes

KEPT = 12
ROUNDS = 9
FARS = None, "block", "site"


def main(quick: bool, only: str | None, operators: str) -> None:
    torch.manual_seed(SEED)
    measures = {
        "errors": partial(errors, again=operators),
        "adaptive": adaptive,
        "coverage": coverages,
        "time": times,
        "causal": causals,
    }
    for name, measure in measures.items():
        if only not in (None, name):
            continue
        rows = measure(quick)
        question = __doc__.splitlines()[0] if __doc__ else ""
        if not quick:
            write(f"far_field_{name}", f"{question} ({name})", rows, kappa=KEPT, seed=SEED)
        for row in rows:
            print(row)


def held_out(quick: bool) -> dict[str, Callable[[], Material]]:
    """All materials but the clip, of which only the coverage is asked."""
    return {name: make for name, make in materials(quick).items() if name != "video"}


# Errors


def errors(quick: bool, again: str) -> list[dict[str, Any]]:
    """Operators whose titles do not match `again` keep the rows of the last results."""
    rows, before = [], last_errors()
    for name, make in held_out(quick).items():
        found = make()
        space = found.space(4, 1)
        problems = {k: shared_by(k, found.features) for k in SHARED_BY}
        exact = {k: ndgpa.Full()(x, x, found.value, space) for k, x in problems.items()}
        for title, (operator, count) in tqdm(operators(space).items(), desc=name):
            if not re.search(again, title) and (name, title) in before:
                rows.append(before[name, title])
                continue
            row: dict[str, Any] = {"features": name, "operator": title, "entries/query": count}
            for k, x in problems.items():
                with torch.no_grad():
                    out = operator(x, x, found.value, space)
                row[f"error_{k}"] = float((out - exact[k]).norm() / exact[k].norm())
            rows.append(row)
    return rows


def last_errors() -> dict[tuple[str, str], dict[str, Any]]:
    path = RESULTS / "far_field_errors.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row["features"], row["operator"]): row for row in rows}


def operators(space: ndgpa.SpatialStructure) -> dict[str, tuple[Any, float]]:
    """Operators that the space allows, and their entries a query."""
    n, blocks, block = space.num_sites, space.num_blocks, 4
    near = gpa_entries(space, KEPT).total / n
    phase_1 = near - KEPT * block
    own, means = ndgpa.Own(), far_entries(Bundles().count, block)
    found: dict[str, tuple[Any, float]] = {
        "GPA(12)": (ndgpa.GPA(KEPT), near),
        "GPA(TopK(11, force=Own()))": (ndgpa.GPA(TopK(KEPT - 1, force=own)), near),
        'GPA(5, far="block")': (ndgpa.GPA(5, far="block"), phase_1 + 5 * block + means),
        'GPA(12, far="block")': (ndgpa.GPA(KEPT, far="block"), near + means),
    }
    factor = 2 if isinstance(space, ndgpa.Grid) and len(space.shape) == 2 else 4
    opened = 64  # nodes, of four blocks each
    levels = space.coarsened(factor).num_blocks / block + opened
    for kept, count, force in ((30, 32, None), (36, 16, own), (29, 32, own), (15, 64, own)):
        rule = MultiLevel((opened, kept), factor, force=force, estimate="mean")
        named = "" if force is None else ", force=Own()"
        title = f"GPA(MultiLevel(({opened}, {kept}){named}), far=Bundles({count}))"
        cost = levels + (kept + (force is not None)) * block + far_entries(count, block)
        found[title] = ndgpa.GPA(rule, far=Bundles(count)), cost
    found['GPA(12, far="site")'] = ndgpa.GPA(KEPT, far="site"), near + blocks
    found['attention to means, far="site"'] = ndgpa.GPA(ndgpa.Fixed(()), far="site"), blocks
    found["Nystrom(128)"] = ndgpa.operators.Nystrom(128), low_rank_entries(128, n) / n
    found["Performer(128)"] = (
        ndgpa.operators.Performer(COMPONENTS, 128).eval(),
        low_rank_entries(128, n) / n,
    )
    if isinstance(space, ndgpa.Grid):
        wide = 256 if len(space.shape) == 1 else 16
        of_grid = {
            f"Neighborhood({wide})": ndgpa.operators.Neighborhood(wide),
            f"Hydra, {wide}, dilations 1 and 4": ndgpa.operators.Hydra.of([wide], [1, 4]),
            f"MultiAxis({wide})": ndgpa.operators.MultiAxis(wide),
            'LocalSparse("ltr", stride=128)': ndgpa.operators.LocalSparse("ltr", stride=128),
            'LocalSparse("strided")': ndgpa.operators.LocalSparse("strided"),
        }
        for title, operator in of_grid.items():
            found[title] = operator, float(operator.mask(space).double().sum(dim=2).mean())
    return found


# Adaptive budget


def adaptive(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for name, make in held_out(quick).items():
        found = make()
        space = found.space(4, 1)
        for k in tqdm(SHARED_BY, desc=name):
            x = shared_by(k, found.features)[:, :1]
            value = found.value[:, :1]
            exact = ndgpa.Full()(x, x, value, space)
            p = share_of_mean(KEPT, x, space)
            for title, rule in (("TopK(12)", TopK(KEPT)), (f"TopP({p:.3f})", at_most_32(p))):
                blocks = ndgpa.select(x, x, space, rule).blocks
                count = (blocks >= 0).sum(dim=-1).double()
                row: dict[str, Any] = {"features": name, "shared by": k, "rule": title}
                row |= {
                    "blocks": float(count.mean()),
                    "cells at 32": float((count >= 32).double().mean()),
                }
                for far in FARS:
                    out = ndgpa.attend(x, x, value, ndgpa.Selection(blocks), space, far=far)
                    row[f"error, far {far}"] = float((out - exact).norm() / exact.norm())
                rows.append(row)
    return rows


def at_most_32(p: float) -> TopP:
    return TopP(p, at_most=32)


def share_of_mean(kept: int, x: Tensor, space: ndgpa.SpatialStructure) -> float:
    """The share that takes so many blocks on the mean of all cells."""
    low, high = 0.0, 1.0
    for _ in range(12):
        p = (low + high) / 2
        blocks = ndgpa.select(x, x, space, at_most_32(p)).blocks
        fewer = (blocks >= 0).sum(dim=-1).double().mean() < kept
        low, high = (p, high) if fewer else (low, p)
    return high


# Coverage


def coverages(quick: bool) -> list[dict[str, Any]]:
    rules: dict[str, ndgpa.selection.Rule] = {"TopK(12)": TopK(KEPT)}
    for parts in (2, 4):
        rules[f"Refine(TopK(48), 12, {parts})"] = Refine(TopK(48), KEPT, parts)
    for codes in (128, 192, 256, 512):
        rules[f"Codebook(12, {codes})"] = Codebook(KEPT, codes)
    rows = []
    for name, make in materials(quick).items():
        found = make()
        problems = {k: about_shared_by(k, found.features)[:, :1] for k in SHARED_BY}
        spaces = {shape: found.space(*shape) for shape in ((4, 1), (16, 1), (16, 4))}
        kept: dict[tuple[Any, ...], dict[str, float]] = {}
        for k, x in tqdm(problems.items(), desc=name):
            mass = (x[0, 0] @ x[0, 0].mT / COMPONENTS**0.5).softmax(dim=1)
            for shape, space in spaces.items():
                of_block = mass_of_blocks(mass, space)
                best = of_block.topk(KEPT, dim=1).values.sum()
                for title, rule in (rules | by_site(shape[1])).items():
                    blocks = ndgpa.select(x, x, space, rule).blocks[0, 0].long()
                    share = of_block.gather(1, blocks.clamp(min=0)).where(blocks >= 0, 0).sum()
                    kept.setdefault((*shape, title), {})[f"share_{k}"] = float(share / best)
        for (block, cell, title), shares in kept.items():
            about = {"features": name, "sites a block": block, "blocks a cell": cell}
            rows.append(about | {"rule": title} | shares)
    return rows


def by_site(own: int) -> dict[str, ndgpa.selection.Rule]:
    """Rules for which a site stands for each block and each part, and that read a cell's blocks.

    Args:
        own: Blocks of a cell; with them 12 are read.
    """
    by_mean = TopK(KEPT - own, force=Own())
    found: dict[str, ndgpa.selection.Rule] = {
        "TopK(12), own forced": by_mean,
        "TopK(12), own forced, by site": replace(by_mean, estimate="site"),
        "TopK(12), by site": TopK(KEPT, estimate="site"),
    }
    for count, parts in ((24, 2), (24, 4), (48, 4)):
        rule = Refine(TopK(count, estimate="site"), KEPT, parts, "site")
        found[f"Refine(TopK({count}), 12, {parts}), by site"] = rule
    return found


def about_shared_by(keys: int, features: Tensor, every: int = 8) -> Tensor:
    """As `shared_by`, by every 8th query, or fewer."""
    low, high = 0.0, 64.0
    x = features[0, 0]
    products = x[::every] @ x.mT / COMPONENTS**0.5
    for _ in range(20):
        factor = (low + high) / 2
        logits = (factor**2 * products).log_softmax(dim=1)
        entropy = -(logits.exp() * logits).sum(dim=1).mean()
        low, high = (factor, high) if entropy.exp() > keys else (low, factor)
    return factor * features


def mass_of_blocks(mass: Tensor, space: ndgpa.SpatialStructure) -> Tensor:  # (C, B)
    """The attention mass of each cell's sites on each block."""
    by_block = torch.zeros(SITES, space.num_blocks).index_add_(1, space.block_of_site, mass)
    by_cell = torch.zeros(space.num_cells, space.num_blocks)
    return by_cell.index_add_(0, space.cell_of_site, by_block)


# Time


def times(quick: bool) -> list[dict[str, Any]]:
    side = 64 if quick else 256
    image = ndgpa.Image((side, side), 4, 2)
    inputs = [torch.randn(1, 1, side * side, 64, requires_grad=True) for _ in range(3)]

    def both(rule: Any, far: Any) -> None:
        out = ndgpa.gpa(*inputs, image, rule, far=far)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    rules: dict[str, Any] = {"TopK(12)": TopK(KEPT)}
    for parts in (2, 4):
        for count in (24, 48):
            rules[f"Refine(TopK({count}), 12, {parts})"] = Refine(TopK(count), KEPT, parts)
    rules |= by_site(image.blocks_per_cell)
    selects = {
        k: lambda r=r: ndgpa.select(*(x.detach() for x in inputs[:2]), image, r)
        for k, r in rules.items()
    }
    fars: dict[str, Any] = {f", far=Bundles({n})": Bundles(n) for n in (8, 16, 32)}
    fbs = {f"TopK(12){name}": partial(both, KEPT, far) for name, far in ({"": None} | fars).items()}
    select_s, fb_s = interleaved(selects), interleaved(fbs)
    rows = []
    for name in dict.fromkeys([*selects, *fbs]):
        row: dict[str, Any] = {"GPA of": name}
        for column, measured in (("select", select_s), ("fb", fb_s)):
            taken = measured.get(name)
            row[f"{column}_ms"] = None if taken is None else 1000 * taken
            plain = measured["TopK(12)"]
            row[f"{column}/plain"] = None if taken is None else taken / plain
        rows.append(row)
    return rows


def causals(quick: bool) -> list[dict[str, Any]]:
    sites = SITES // 4 if quick else SITES
    space = ndgpa.Sequence(sites, 4, 1)
    query, value = (torch.randn(1, 2, sites, d, requires_grad=True) for d in (16, 64))

    def both(far: Any, causal: bool) -> None:
        out = ndgpa.gpa(query, query, value, space, KEPT, far=far, causal=causal)
        torch.autograd.grad(out, (query, value), torch.ones_like(out))

    calls = {(far, causal): partial(both, far, causal) for causal in (False, True) for far in FARS}
    names = {key: f"GPA(12, far={key[0]!r}{', causal' if key[1] else ''})" for key in calls}
    taken = interleaved({names[key]: call for key, call in calls.items()})
    plain = taken[names[None, False]]
    return [
        {
            "operator": names[key],
            "fb_ms": 1000 * taken[names[key]],
            "fb/plain": taken[names[key]] / plain,
            "fb_mb": peak_bytes(call) / 1e6,
        }
        for key, call in calls.items()
    ]


def interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median processor time of each call, in seconds; every call has its turn in every round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in tqdm(range(ROUNDS + 1), desc="time"):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_:  # the first warms up
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two features; writes nothing")
    parser.add_argument("--only", choices=("errors", "adaptive", "coverage", "time", "causal"))
    parser.add_argument("--operators", default="", help="of errors: the others keep their rows")
    arguments = parser.parse_args()
    main(arguments.quick, arguments.only, arguments.operators)
