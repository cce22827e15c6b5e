"""Does MultiLevel cost near n log n, and does it still find what one level finds?

    python benchmarks/levels.py                # writes results/levels.* and results/levels_found.*
    python benchmarks/levels.py --only cost    # the first alone
    python benchmarks/levels.py --only found   # the second alone

`levels`: selects and attends on features of photographs, from 65,536 to 4 million sites, on two
threads, in two dimensions, in one (the same photographs read along a space-filling order) and on
points (the pixels, shaken). Columns:

    space, sites     the structure and its n
    keep             of MultiLevel, one level more for each factor of four in n
    select_products  multiply-adds of queries and keys in `select`, for each site
    gpa_products     those and the ones of `attend`
    select_s         seconds of `select`, median over rounds in which every size has its turn
    attend_s         seconds of `attend` with that selection
    gpa_s            their sum
    top_k_s          seconds of `select` with one level, where it takes less than about a minute
    coverage         share of full-attention mass on the kept keys, mean over 256 random sites
    ratio            coverage over that of one-level TopK at equal kept keys

The exponents are slopes of the logarithm of work or seconds against that of n; n log n itself has
slope 1.08 over this range.

`levels_found`: that ratio for 128 cells of images of several sizes (columns: their sites), for
mosaics of photographs and random filters (seeds) that no schedule was chosen on. That of `keep` was
chosen on the mosaic CHOSEN_ON alone, with seed 1.
"""

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from measure import median_seconds, write
from skimage import data as photographs
from torch import Tensor

import ndgpa

CHOSEN_ON = ("astronaut", "coffee", "chelsea", "rocket")
COLOUR = ("immunohistochemistry", "stereo_motorcycle", "retina", "hubble_deep_field")
GREY = ("camera", "coins", "moon", "brick")
UNSEEN = {"colour": COLOUR, "grey": GREY}
QUESTION = __doc__.splitlines()[0]
FEATURES = 16
KEPT = 12
TOP = 32  # blocks along each side of the coarsest level
LARGEST_TOP_K = 1 << 18  # sites up to which one level is timed too


@dataclass
class Options:
    """What the run may be told."""

    only: Literal["cost", "found"] | None = None
    """Half of the question."""
    sides: tuple[int, ...] = (256, 512, 1024, 2048)
    keep: int = 96
    """Nodes kept at the coarsest level; half as many at each finer one."""
    least: int = 24
    """Nodes kept at any level."""
    found_sides: tuple[int, ...] = (256, 512)
    seeds: tuple[int, ...] = (2, 3, 4)
    """Of the random filters."""
    rounds: int = 7
    """In which every size is timed once."""
    threads: int = 2


def features(
    side: int, names: tuple[str, ...] = COLOUR, seed: int = 2
) -> Tensor:  # (1, 1, side * side, FEATURES)
    """Random 5 by 5 filters of a mosaic of photographs, rectified, of mean 0 and variance 1."""
    photos = [_filled(photo(name), max(256, side // 2)) for name in names]
    mosaic = torch.cat([torch.cat(photos[:2], dim=2), torch.cat(photos[2:], dim=2)], dim=1)
    image = mosaic[None, :, :side, :side]
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(FEATURES, 3, 5, 5, generator=generator)
    x = F.conv2d(F.pad(image - image.mean(), (2,) * 4, mode="reflect"), filters).relu()
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True)
    return x.flatten(2).mT[:, None].contiguous()


def photo(name: str) -> Tensor:  # (3, height, width), 0 to 1
    pixels = getattr(photographs, name)()
    pixels = torch.from_numpy(pixels[0] if isinstance(pixels, tuple) else pixels) / 255
    return pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _filled(photo: Tensor, side: int) -> Tensor:
    """A square of a photo at its own resolution, mirrored where it is too small."""
    for axis in (1, 2):
        while photo.shape[axis] < side:
            photo = torch.cat([photo, photo.flip(axis)], dim=axis)
    return photo[:, :side, :side]


def unrolled(x: Tensor, side: int) -> Tensor:
    """The sites in Morton order, so that neighbours in one dimension are neighbours in two."""
    order = torch.zeros(side, side, dtype=torch.int64)
    at = torch.arange(side)
    for bit in range(side.bit_length()):
        order += ((at >> bit & 1) << (2 * bit + 1))[:, None] + ((at >> bit & 1) << (2 * bit))
    return x[:, :, order.flatten().argsort()]


def coverage(x: Tensor, structure: Any, selection: ndgpa.Selection) -> float:
    """Mass of full attention on the kept keys, mean over 256 sites drawn at random."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for sites in torch.randint(structure.num_sites, (16, 16), generator=generator):
        mass = (x[0, 0, sites] @ x[0, 0].mT * FEATURES**-0.5).softmax(dim=-1)
        kept = structure.upsample(selection.blocks[0, 0, structure.cell_of_site[sites]]).flatten(1)
        total += mass.gather(1, kept.clamp(min=0)).masked_fill(kept < 0, 0).sum().item()
    return total / 256


def space_of(name: str, side: int, x: Tensor) -> tuple[Tensor, ndgpa.SpatialStructure, int]:
    """Features, structure and factor: blocks of 16 sites, cells of 4, four nodes to a parent."""
    if name == "image":
        return x, ndgpa.Image((side, side), 4, 2), 2
    if name == "sequence":
        return unrolled(x, side), ndgpa.Sequence(side * side, 16, 4), 4
    pixels = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    shaken = pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(3))
    return x, ndgpa.PointCloud(shaken, 16, 4), 4


def rule_for(side: int, factor: int, options: Options) -> ndgpa.MultiLevel:
    levels = 1 + round(math.log2(side / 4 / TOP))
    keep = (max(options.least, options.keep >> level) for level in range(levels - 1))
    return ndgpa.MultiLevel((*keep, KEPT), factor)


def products(structure: ndgpa.SpatialStructure, rule: ndgpa.MultiLevel) -> tuple[float, float]:
    """Multiply-adds for each site of queries and keys in `select`, and with those of `attend`."""
    seen, space = 0, structure
    levels = [space := space.coarsened(rule.factor) for _ in rule.keep[1:]]
    for level, kept in zip(levels, rule.keep[-2::-1]):
        box = 1 if level is levels[0] else 2  # the finest level has no bound to compute
        seen += kept * level.sites_per_block * box * FEATURES
    seen += levels[-1].num_blocks * 2 * FEATURES
    select = seen / structure.sites_per_block
    return select, select + 2 * FEATURES * KEPT * structure.sites_per_block


@dataclass(frozen=True)
class Case:
    """A space of one size, its rule, and what that selects; all tables are made."""

    name: str
    x: Tensor
    structure: ndgpa.SpatialStructure
    rule: ndgpa.MultiLevel
    selection: ndgpa.Selection

    def select(self) -> Any:
        return ndgpa.select(self.x, self.x, self.structure, self.rule)

    def attend(self) -> Any:
        return ndgpa.attend(self.x, self.x, self.x, self.selection, self.structure)


def case_of(name: str, side: int, options: Options) -> Case:
    x, structure, factor = space_of(name, side, features(side))
    rule = rule_for(side, factor, options)
    return Case(name, x, structure, rule, ndgpa.select(x, x, structure, rule))


def timed(cases: list[Case], rounds: int) -> list[dict[str, float]]:
    """Medians over rounds in which every size has its turn: a slow minute is everyone's."""
    seconds = [{"select_s": [], "attend_s": []} for _ in cases]
    for _ in range(rounds):
        for case, of_case in zip(cases, seconds):
            for column, call in (("select_s", case.select), ("attend_s", case.attend)):
                start = time.perf_counter()
                call()
                of_case[column].append(time.perf_counter() - start)
    return [{column: median(times) for column, times in x.items()} for x in seconds]


def row(case: Case, seconds: dict[str, float]) -> dict[str, Any]:
    x, structure, rule = case.x, case.structure, case.rule
    selected, both = products(structure, rule)
    kept = coverage(x, structure, case.selection)
    line = {
        "space": case.name,
        "sites": structure.num_sites,
        "keep": " ".join(map(str, rule.keep)),
        "select_products": selected,
        "gpa_products": both,
        **seconds,
        "gpa_s": sum(seconds.values()),
        "coverage": kept,
    }
    if structure.num_sites <= LARGEST_TOP_K:
        line["top_k_s"] = median_seconds(lambda: ndgpa.select(x, x, structure, KEPT), repeats=3)
        single = ndgpa.select(x, x, structure, KEPT)
        line["ratio"] = kept / coverage(x, structure, single)
    return line


def sampled_ratio(x: Tensor, side: int, options: Options) -> float:
    """Coverage over that of one-level TopK for 128 cells of a grid."""
    structure = ndgpa.Image((side, side), 4, 2)
    chosen = torch.randperm(structure.num_cells, generator=torch.Generator().manual_seed(2))[:128]
    sites = structure.cell_sites[chosen].flatten()
    few = ndgpa.Clusters(
        torch.arange(len(sites)) // structure.sites_per_block,
        torch.arange(128).repeat_interleave(structure.blocks_per_cell),
    )
    query, masses = x[:, :, sites], []
    for rule in (rule_for(side, 2, options), ndgpa.TopK(KEPT)):
        blocks = ndgpa.select(query, x, few, rule, key_structure=structure).blocks[0, 0]
        total = 0.0
        for cell in range(128):
            some = query[0, 0, few.cell_sites[cell, ::16]]
            mass = (some @ x[0, 0].mT * FEATURES**-0.5).softmax(dim=-1)
            total += mass[:, structure.upsample(blocks[cell]).flatten()].sum().item()
        masses.append(total)
    return masses[0] / masses[1]


def found(options: Options) -> None:
    """The ratio on every mosaic, filter and size."""
    rows = []
    for name, photos in UNSEEN.items():
        for seed in options.seeds:
            line: dict[str, Any] = {"mosaic": name, "seed": seed}
            for side in options.found_sides:
                line[str(side * side)] = sampled_ratio(features(side, photos, seed), side, options)
            rows.append(line)
            print(line, flush=True)
    ratios = [line[str(side * side)] for line in rows for side in options.found_sides]
    worst, mean = min(ratios), sum(ratios) / len(ratios)
    schedule = {"keep": options.keep, "least": options.least, "kept": KEPT}
    write("levels_found", QUESTION, rows, worst=worst, mean=mean, **schedule)


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    """The slope of the logarithm of seconds, or of work for each site, against that of n."""
    n, work = (torch.tensor([r[c] for r in rows]).double().log() for c in ("sites", column))
    n, work = n - n.mean(), work - work.mean()
    slope = ((n * work).sum() / (n * n).sum()).item()
    return slope if column.endswith("_s") else 1 + slope


def cost(options: Options) -> None:
    rows, exponents = [], {}
    for name in ("image", "sequence", "points"):
        cases = [case_of(name, side, options) for side in options.sides]
        own = [row(case, of_case) for case, of_case in zip(cases, timed(cases, options.rounds))]
        columns = ("select_products", "gpa_products", "select_s", "gpa_s")
        exponents[name] = {column: exponent(own, column) for column in columns}
        print(f"{name}: exponents {exponents[name]}", flush=True)
        rows += own
    write("levels", QUESTION, rows, exponents=exponents, kept=KEPT)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    if options.only != "found":
        cost(options)
    if options.only != "cost":
        found(options)


if __name__ == "__main__":
    main(tyro.cli(Options))
