"""Does MultiLevel cost near n log n, and does it still find what one level finds?

    python benchmarks/levels.py --out benchmarks/results/levels.json

Selects and attends on features of photographs, from 65,536 to 4 million sites, on two threads, in
two dimensions, in one (the same photographs read along a space-filling order) and on points (the
pixels, shaken). Columns:

    sites       n
    levels      of MultiLevel, one more for each factor of four in n
    select_s    seconds of `select`, best of `repeats`
    attend_s    seconds of `attend` with that selection
    gpa_s       their sum
    top_k_s     seconds of `select` with one level, where it takes less than about a minute
    coverage    share of full-attention mass on the kept keys, mean over 256 random sites
    ratio       coverage over that of one-level TopK at equal kept keys

The exponents are slopes of log seconds against log n, of `select` alone and of both phases; n log n
itself has slope 1.08 over this range.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from skimage import data as photographs
from torch import Tensor

import ndgpa

FEATURES = 16
KEPT = 12
TOP = 32  # blocks along each side of the coarsest level
LARGEST_TOP_K = 1 << 18  # sites up to which one level is timed too


@dataclass
class Options:
    """What the run may be told."""

    out: Path = Path("out/levels.json")
    sides: tuple[int, ...] = (256, 512, 1024, 2048)
    keep: int = 96
    """Nodes kept at the coarsest level; half as many at each finer one, but at least 24."""
    repeats: int = 2
    threads: int = 2


def features(side: int) -> Tensor:  # (1, 1, side * side, FEATURES)
    """Random 5 by 5 filters of a mosaic of photographs, rectified, of mean 0 and variance 1."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    photos = [torch.from_numpy(getattr(photographs, name)()) for name in names]
    photos = [_filled(photo.permute(2, 0, 1) / 255, max(256, side // 2)) for photo in photos]
    mosaic = torch.cat([torch.cat(photos[:2], dim=2), torch.cat(photos[2:], dim=2)], dim=1)
    image = mosaic[None, :, :side, :side]
    generator = torch.Generator().manual_seed(1)
    filters = torch.randn(FEATURES, 3, 5, 5, generator=generator)
    x = F.conv2d(F.pad(image - image.mean(), (2,) * 4, mode="reflect"), filters).relu()
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True)
    return x.flatten(2).mT[:, None].contiguous()


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


def best(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begin)
    return min(times), result


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
    keep = (max(24, options.keep >> level) for level in range(levels - 1))
    return ndgpa.MultiLevel((*keep, KEPT), factor)


def row(name: str, side: int, options: Options) -> dict[str, float]:
    x, structure, factor = space_of(name, side, features(side))
    rule = rule_for(side, factor, options)
    ndgpa.select(x, x, structure, rule)  # makes the tables
    select_s, selection = best(options.repeats, lambda: ndgpa.select(x, x, structure, rule))
    attend_s, _ = best(1, lambda: ndgpa.attend(x, x, x, selection, structure))
    found = coverage(x, structure, selection)
    line = {
        "sites": side * side,
        "levels": len(rule.keep),
        "select_s": select_s,
        "attend_s": attend_s,
        "gpa_s": select_s + attend_s,
        "coverage": found,
    }
    if side * side <= LARGEST_TOP_K:
        line["top_k_s"], single = best(1, lambda: ndgpa.select(x, x, structure, KEPT))
        line["ratio"] = found / coverage(x, structure, single)
    return line


def sampled_ratio(side: int, options: Options) -> float:
    """Coverage over that of one-level TopK for 128 cells of a grid too large for all of them."""
    x = features(side)
    structure = ndgpa.Image((side, side), 4, 2)
    chosen = torch.randperm(structure.num_cells, generator=torch.Generator().manual_seed(2))[:128]
    sites = structure.cell_sites[chosen].flatten()
    few = ndgpa.Clusters(
        torch.arange(len(sites)) // structure.sites_per_block,
        torch.arange(128).repeat_interleave(structure.blocks_per_cell),
    )
    query, masses = x[:, :, sites], []
    for rule in (
        rule_for(side, 2, options),
        ndgpa.TopK(KEPT),
    ):
        blocks = ndgpa.select(query, x, few, rule, key_structure=structure).blocks[0, 0]
        total = 0.0
        for cell in range(128):
            some = query[0, 0, few.cell_sites[cell, ::16]]
            mass = (some @ x[0, 0].mT * FEATURES**-0.5).softmax(dim=-1)
            total += mass[:, structure.upsample(blocks[cell]).flatten()].sum().item()
        masses.append(total)
    return masses[0] / masses[1]


def exponent(rows: list[dict[str, float]], column: str) -> float:
    """The slope of log seconds against log n."""
    n, seconds = (torch.tensor([r[c] for r in rows]).double().log() for c in ("sites", column))
    n, seconds = n - n.mean(), seconds - seconds.mean()
    return ((n * seconds).sum() / (n * n).sum()).item()


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "machine_cores": os.cpu_count(),
        "keep": options.keep,
        "kept_blocks": KEPT,
    }
    for name in ("image", "sequence", "points"):
        rows = []
        for side in options.sides:
            rows.append(row(name, side, options))
            print(name, {k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
        slopes = {column: exponent(rows, column) for column in ("select_s", "gpa_s")}
        result[name] = {"rows": rows, "exponent": slopes}
        print(f"{name}: exponents {slopes}", flush=True)
    result["ratio_largest"] = sampled_ratio(options.sides[-1], options)
    print(f"coverage over TopK's, {options.sides[-1]} a side: {result['ratio_largest']:.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
