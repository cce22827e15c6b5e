"""Grids cut into boxes: the reshapes behind `Grid`."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


def ceil_div(sizes: tuple[int, ...], by: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-size // width) for size, width in zip(sizes, by))


def number_boxes(
    shape: tuple[int, ...], box: tuple[int, ...], device: torch.device
) -> Int[Tensor, "boxes members"]:
    """List the raster numbers in each box of a grid, boxes in raster order; -1 outside the grid."""
    numbers = torch.arange(math.prod(shape), device=device).view(*shape, 1)
    counts = ceil_div(shape, box)
    padded = pad(numbers, tuple(c * b for c, b in zip(counts, box)), value=-1)
    return split_axes(padded, counts, box).reshape(math.prod(counts), math.prod(box))


def beside(
    shape: tuple[int, ...], steps: tuple[int, ...], device: torch.device
) -> Int[Tensor, "places ways"]:
    """List for each place of a grid what lies `steps` away, up and down each axis; -1 outside."""
    numbers = torch.arange(math.prod(shape), device=device).view(shape)
    ways = []
    for axis, (size, step) in enumerate(zip(shape, steps)):
        width = [1] * len(shape)
        width[axis] = size
        place = torch.arange(size, device=device).view(width)
        for move in (step, -step):
            outside = (place + move < 0) | (place + move >= size)
            moved = numbers + move * math.prod(shape[axis + 1 :])
            ways.append(moved.masked_fill(outside, -1).flatten())
    return torch.stack(ways, dim=1)


def pad(
    x: Tensor, shape: tuple[int, ...], value: int = 0
) -> Tensor:  # (*batch, *axes, d) -> (*batch, *shape, d)
    """Lengthen the axes before the last to `shape`, at their far ends."""
    axes = x.shape[-len(shape) - 1 : -1]
    if tuple(axes) == shape:
        return x
    widths = [0, 0]
    for size, wanted in zip(reversed(axes), reversed(shape)):
        widths += [0, wanted - size]
    return F.pad(x, widths, value=value)


def split_axes(
    x: Tensor, *levels: tuple[int, ...]
) -> Tensor:  # (*batch, *axes, d) -> (*batch, *levels[0], *levels[1], ..., d)
    """Split every axis into its levels, coarsest first, and bring equal levels together."""
    rank = len(levels[0])
    first = x.ndim - rank - 1
    sizes = [level[axis] for axis in range(rank) for level in levels]
    split = x.reshape(*x.shape[:first], *sizes, x.shape[-1])
    order = [
        first + level + len(levels) * axis for level in range(len(levels)) for axis in range(rank)
    ]
    return split.permute(*range(first), *order, split.ndim - 1)


def join_axes(
    parts: Tensor, *levels: tuple[int, ...]
) -> Tensor:  # (*batch, cells, members, d) -> (*batch, *axes, d)
    """Undo `split_axes` of parts that are flattened to cells and their members."""
    batch, rank = parts.shape[:-3], len(levels[0])
    boxes = [size for level in levels for size in level]
    split = parts.reshape(*batch, *boxes, parts.shape[-1])
    first = len(batch)
    order = [first + axis + rank * level for axis in range(rank) for level in range(len(levels))]
    joined = split.permute(*range(first), *order, split.ndim - 1)
    axes = [math.prod(sizes) for sizes in zip(*levels)]
    return joined.reshape(*batch, *axes, parts.shape[-1])


def outer(
    numbers: Int[Tensor, "C W"], along: Int[Tensor, "c w"], count: int
) -> Int[Tensor, "Cc Ww"]:
    """Append an axis of `count` blocks to raster numbers; a number that is empty stays so."""
    appended = numbers[:, None, :, None] * count + along[None, :, None, :]
    empty = (numbers < 0)[:, None, :, None] | (along < 0)[None, :, None, :]
    return appended.masked_fill(empty, -1).flatten(2).flatten(0, 1)


def sum_runs(x: Tensor, axis: int, width: int) -> Tensor:
    """Sum runs of `width` along an axis; the last run may be shorter."""
    if width == 1:
        return x
    whole = x.shape[axis] // width * width
    sums = x.narrow(axis, 0, whole).unflatten(axis, (-1, width)).sum(axis)
    if whole == x.shape[axis]:
        return sums
    rest = x.narrow(axis, whole, x.shape[axis] - whole).sum(axis, keepdim=True)
    return torch.cat([sums, rest], axis)
