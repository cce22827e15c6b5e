"""Spaces of every kind: grids, clusters, graphs, points, several as one; and samplings."""

import math
import random

import torch
from torch import Tensor

import ndgpa
from ndgpa.structures import Sampling

GROUPS = (0, 1, 2**62, 2**62 + 1)


def two_spaces(
    draw: random.Random, generator: torch.Generator, sites: int
) -> tuple[ndgpa.SpatialStructure, ndgpa.SpatialStructure, Sampling | None]:
    """Queries and keys, on one space or on two, and how the keys are read."""
    timed, grouped = draw.random() < 0.6, draw.random() < 0.25
    structure = _space(draw, generator, sites, timed, grouped)
    kind = draw.choice(["same", "same", "same", "cross", "sampled", "sampled cross"])
    key_structure, read = structure, None
    if "cross" in kind:
        key_structure = _space(draw, generator, sites, timed, grouped)
    if "sampled" in kind:
        read = _sampling(draw, key_structure)
    return structure, key_structure, read


def _sampling(draw: random.Random, structure: ndgpa.SpatialStructure) -> Sampling:
    kinds: list[Sampling] = [
        ndgpa.structures.Strided(2),
        ndgpa.structures.Strided(3),
        ndgpa.structures.Jittered(1),
        ndgpa.structures.Jittered(2, seed=3),
    ]
    if isinstance(structure, ndgpa.Grid):
        kinds += [
            ndgpa.structures.Halo(1),
            ndgpa.structures.Halo(tuple(draw.randint(0, 2) for _ in structure.shape)),
        ]
    return draw.choice(kinds)


def _space(
    draw: random.Random, generator: torch.Generator, sites: int, timed: bool, grouped: bool
) -> ndgpa.SpatialStructure:
    if grouped and draw.random() < 0.5:
        return _clusters(draw, generator, sites, timed, grouped=True)
    if grouped:
        parts = [_space(draw, generator, sites // 3, timed, False) for _ in range(3)]
        return ndgpa.disjoint(parts[: draw.randint(1, 3)])
    kind = draw.choice(["grid", "grid", "grid", "clusters", "graph", "points"])
    if kind == "grid":
        return _grid(draw, sites, timed)
    if kind == "clusters":
        return _clusters(draw, generator, sites, timed)
    count = draw.randint(1, sites)
    block = draw.randint(1, min(count, 5))
    cell = draw.randint(1, min(-(-count // block), 3))
    time = torch.randint(-4, 4, (count,), generator=generator) if timed else None
    if kind == "points":
        position = torch.randn(count, draw.randint(1, 3), generator=generator)
        return ndgpa.PointCloud(position, block, cell, time=time)
    edges = torch.randint(0, count, (2, 2 * count), generator=generator)
    return ndgpa.Graph(edges, count, block, cell, method="metis", time=time)


def _grid(draw: random.Random, sites: int, timed: bool) -> ndgpa.Grid:
    """Of any rank; sizes need not divide; blocks and cells up to the whole axis."""
    shape: list[int] = []
    for _ in range(rank := draw.choice([1, 1, 2, 2, 3, 4])):
        room = max(1, sites // math.prod(shape))
        shape.append(draw.randint(1, min(room, sites if rank == 1 else 7)))
    block = tuple(draw.randint(1, min(size, 4)) for size in shape)
    counts = [-(-size // d) for size, d in zip(shape, block)]
    cell = tuple(draw.randint(1, min(count, 3)) for count in counts)
    if draw.random() < 0.3:  # whole blocks and cells
        shape = [d * c * draw.randint(1, 2) for d, c in zip(block, cell)]
    return ndgpa.Grid(tuple(shape), block, cell, draw.randrange(rank) if timed else None)


def _clusters(
    draw: random.Random,
    generator: torch.Generator,
    sites: int,
    timed: bool,
    grouped: bool = False,
) -> ndgpa.Clusters:
    """Ragged partitions, sites in no order, times below 0, groups of any number."""
    blocks = draw.randint(1, min(9, sites))
    count, cells = draw.randint(blocks, sites), draw.randint(1, blocks)
    cell_of_block = _onto(blocks, cells, generator)
    time = torch.randint(-5, 5, (count,), generator=generator) if timed else None
    group = None
    if grouped:
        ids = torch.tensor(GROUPS)[torch.randint(0, len(GROUPS), (cells,), generator=generator)]
        group = ids[cell_of_block]
    return ndgpa.Clusters(_onto(count, blocks, generator), cell_of_block, time, group)


def _onto(count: int, rows: int, generator: torch.Generator) -> Tensor:
    """A random map of `count` members onto `rows` rows, every row used."""
    rest = torch.randint(0, rows, (count - rows,), generator=generator)
    return torch.cat([torch.arange(rows), rest])[torch.randperm(count, generator=generator)]
