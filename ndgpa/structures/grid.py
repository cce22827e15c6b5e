"""Grids of any rank: sequences, images, video, and beyond."""

import collections.abc
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure, table

PerAxis = int | tuple[int, ...]


@dataclass(frozen=True, init=False)
class Grid(SpatialStructure):
    """A grid: blocks and cells are boxes, sites are numbered in raster order (last axis fastest).

    Sizes need not divide. A block at the far border of an axis has fewer sites, a cell there fewer
    blocks; the tables keep a full box for each, with -1 at the places outside the grid.

    Args:
        shape: Sites along each axis.
        block: Sites of a block along each axis (the paper's d); one int serves all axes.
        cell: Blocks of a cell along each axis; one int serves all axes.
        time_axis: The axis that is time, for causal attention; None where there is none.
        device: Where the index tables are.

    Raises:
        ValueError: An axis is empty, or a factor is below 1 or larger than its axis.
        TypeError: A size is not an int.

    Example:
        `Grid((256, 256), block=4, cell=2)` has 64x64 blocks of 4x4 sites in 32x32 cells of 2x2
        blocks: the configuration that the paper calls its pivot.
    """

    shape: tuple[int, ...]
    block_shape: tuple[int, ...]
    cell_shape: tuple[int, ...]
    time_axis: int | None
    on: torch.device = field(repr=False)
    _copies: dict[torch.device, "Grid"] = field(repr=False, compare=False)

    def __init__(
        self,
        shape: PerAxis,
        block: PerAxis,
        cell: PerAxis = 1,
        time_axis: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        shape, block_shape, cell_shape = _check_grid(shape, block, cell, time_axis)
        fields: dict[str, object] = {
            "shape": shape,
            "block_shape": block_shape,
            "cell_shape": cell_shape,
            "time_axis": time_axis,
            "on": torch.device(device),
            "_copies": {},
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        return self.on

    def to(self, device: torch.device | str) -> "Grid":
        device = torch.device(device)
        if device == self.on:
            return self
        if device not in self._copies:
            self._copies[device] = Grid(
                self.shape, self.block_shape, self.cell_shape, self.time_axis, device
            )
        return self._copies[device]

    def coarsen(self, factor: PerAxis, cell: PerAxis = 1) -> "Grid":
        """The grid whose sites are the blocks; one int of a factor is cut to each axis' length."""
        blocks = self.grid_of_blocks
        if isinstance(factor, int):
            factor = tuple(min(factor, count) for count in blocks)
        return Grid(blocks, factor, cell, self.time_axis, self.on)

    def near_cells(self, radius: PerAxis) -> Int[Tensor, "C W"]:
        """The blocks whose distance to the cell is at most `radius` along every axis."""
        radii = _radii(radius, len(self.shape))
        table = torch.zeros(1, 1, dtype=torch.int64, device=self.on)
        for count, cell, reach in zip(self.grid_of_blocks, self.cell_shape, radii):
            width = min(cell + 2 * reach, count)
            begins = torch.arange(0, count, cell, device=self.on)
            ends = (begins + cell + reach).clamp(max=count)
            along = (begins - reach).clamp(min=0)[:, None] + torch.arange(width, device=self.on)
            along = along.masked_fill(along >= ends[:, None], -1)
            table = _outer(table, along, count)
        return table

    def strided_blocks(self, step: int) -> Int[Tensor, "B S"]:
        """Every `step`-th site of each block along every axis."""
        boxes = self.blocks.view(-1, *self.block_shape)
        every = (slice(None), *(slice(None, None, step) for _ in self.shape))
        return boxes[every].flatten(1)

    def halo_blocks(self, reach: PerAxis) -> Int[Tensor, "B S"]:
        """The sites whose distance to the block is at most `reach` along every axis."""
        return Grid(self.shape, 1, self.block_shape, device=self.on).near_cells(reach)

    # Sizes, without the tables

    @property
    def grid_of_blocks(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return _ceil_div(self.shape, self.block_shape)

    @property
    def grid_of_cells(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return _ceil_div(self.grid_of_blocks, self.cell_shape)

    @property
    def num_sites(self) -> int:
        return math.prod(self.shape)

    @property
    def num_blocks(self) -> int:
        return math.prod(self.grid_of_blocks)

    @property
    def num_cells(self) -> int:
        return math.prod(self.grid_of_cells)

    @property
    def sites_per_block(self) -> int:
        return math.prod(self.block_shape)

    @property
    def blocks_per_cell(self) -> int:
        return math.prod(self.cell_shape)

    @property
    def is_even(self) -> bool:
        return self._padded_to(self._cell_extent) == self.shape

    @property
    def _cell_extent(self) -> tuple[int, ...]:
        """Sites of a whole cell along each axis."""
        return tuple(r * p for r, p in zip(self.block_shape, self.cell_shape))

    def _padded_to(self, extent: tuple[int, ...]) -> tuple[int, ...]:
        """The shape rounded up to multiples of `extent`."""
        return tuple(count * e for count, e in zip(_ceil_div(self.shape, extent), extent))

    # Tables

    @table
    def blocks(self) -> Int[Tensor, "B R"]:
        return _boxes(_raster(self.shape, self.on), self.block_shape)

    @table
    def cells(self) -> Int[Tensor, "C P"]:
        return _boxes(_raster(self.grid_of_blocks, self.on), self.cell_shape)

    @table
    def time(self) -> Int[Tensor, " n"] | None:
        if self.time_axis is None:
            return None
        steps = torch.arange(self.shape[self.time_axis], device=self.on)
        across = [-1 if axis == self.time_axis else 1 for axis in range(len(self.shape))]
        return steps.view(across).expand(self.shape).reshape(-1).contiguous()

    def span_of_blocks(
        self, first: Int[Tensor, " n"], last: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The earliest time in each block, and the latest that a whole block would have.

        So a block that a sequence has not filled yet is not over: what is computed for a prefix
        does not depend on how long the sequence will be. All sites take equally long.
        """
        assert self.time_axis is not None
        length = self.block_shape[self.time_axis] * (last[0] - first[0] + 1)
        numbers = torch.arange(self.num_blocks, device=self.on)
        after = math.prod(self.grid_of_blocks[self.time_axis + 1 :])
        begin = numbers // after % self.grid_of_blocks[self.time_axis] * length
        return begin, begin + length - 1

    # The paper's operators, as reshapes

    def block_sums(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B d"]:
        sums = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = sums.unflatten(-2, self.shape)
        for axis, width in enumerate(self.block_shape):
            sums = _sum_runs(sums, axis - len(self.shape) - 1, width)
        return sums.flatten(-len(self.shape) - 1, -2)

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        grid = _pad(x.unflatten(-2, self.shape), self._padded_to(self._cell_extent))
        grid = _split_axes(grid, self.grid_of_cells, self.cell_shape, self.block_shape)
        sites_per_cell = self.blocks_per_cell * self.sites_per_block
        return grid.reshape(*x.shape[:-2], self.num_cells, sites_per_cell, x.shape[-1])

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        batch, rank = parts.shape[:-3], len(self.shape)
        boxes = (*self.grid_of_cells, *self.cell_shape, *self.block_shape)
        grid = parts.reshape(*batch, *boxes, parts.shape[-1])
        first = len(batch)
        order = [first + axis + rank * level for axis in range(rank) for level in range(3)]
        grid = grid.permute(*range(first), *order, grid.ndim - 1)
        grid = grid.reshape(*batch, *self._padded_to(self._cell_extent), parts.shape[-1])
        for axis, size in enumerate(self.shape):
            grid = grid.narrow(first + axis, 0, size)
        return grid.reshape(*batch, self.num_sites, parts.shape[-1])

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        grid = _pad(x.unflatten(-2, self.shape), self._padded_to(self.block_shape))
        grid = _split_axes(grid, self.grid_of_blocks, self.block_shape)
        return grid.reshape(*x.shape[:-2], self.num_blocks, self.sites_per_block, x.shape[-1])


def Sequence(length: int, block: int, cell: int = 1) -> Grid:
    """A grid of one axis whose time is the index: samples, frames, tokens."""
    _check_length(length)
    return Grid((length,), block, cell, time_axis=0)


def Image(shape: tuple[int, int], block: PerAxis, cell: PerAxis = 1) -> Grid:
    """A grid of (height, width)."""
    _check_rank("Image", shape, ("height", "width"))
    return Grid(shape, block, cell)


def Video(shape: tuple[int, int, int], block: PerAxis, cell: PerAxis = 1) -> Grid:
    """A grid of (frames, height, width) whose time is the frame."""
    _check_rank("Video", shape, ("frames", "height", "width"))
    return Grid(shape, block, cell, time_axis=0)


def _ceil_div(sizes: tuple[int, ...], by: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-size // width) for size, width in zip(sizes, by))


def _raster(shape: tuple[int, ...], device: torch.device) -> Int[Tensor, "*shape"]:
    return torch.arange(math.prod(shape), device=device).view(shape)


def _boxes(numbers: Int[Tensor, "*shape"], box: tuple[int, ...]) -> Int[Tensor, "boxes members"]:
    """The numbers in each box of a grid, boxes in raster order; -1 outside the grid."""
    counts = _ceil_div(tuple(numbers.shape), box)
    padded = _pad(numbers[..., None], tuple(c * b for c, b in zip(counts, box)), value=-1)
    return _split_axes(padded, counts, box).reshape(math.prod(counts), math.prod(box))


def _pad(
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


def _split_axes(
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


def _outer(
    table: Int[Tensor, "C W"], along: Int[Tensor, "c w"], count: int
) -> Int[Tensor, "Cc Ww"]:
    """Append an axis of `count` blocks to raster numbers; a number that is empty stays so."""
    numbers = table[:, None, :, None] * count + along[None, :, None, :]
    empty = (table < 0)[:, None, :, None] | (along < 0)[None, :, None, :]
    numbers = numbers.masked_fill(empty, -1)
    return numbers.flatten(2).flatten(0, 1)


def _sum_runs(x: Tensor, axis: int, width: int) -> Tensor:
    """Sum runs of `width` along an axis; the last run may be shorter."""
    if width == 1:
        return x
    whole = x.shape[axis] // width * width
    sums = x.narrow(axis, 0, whole).unflatten(axis, (-1, width)).sum(axis)
    if whole == x.shape[axis]:
        return sums
    rest = x.narrow(axis, whole, x.shape[axis] - whole).sum(axis, keepdim=True)
    return torch.cat([sums, rest], axis)


def _check_grid(
    shape: Any, block: Any, cell: Any, time_axis: int | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape, block shape and cell shape, one int per axis each."""
    shape = arguments.ints("shape", shape)
    if not shape:
        raise ValueError("shape has no axes; a grid needs at least one")
    if min(shape) < 1:
        raise ValueError(f"shape {shape} has an empty axis; every axis needs at least one site")
    block_shape = arguments.factors("block", block, shape, "sites")
    blocks = tuple(math.ceil(n / d) for n, d in zip(shape, block_shape))
    cell_shape = arguments.factors("cell", cell, blocks, "blocks")
    if time_axis is not None and not 0 <= time_axis < len(shape):
        raise ValueError(f"time_axis {time_axis} is not an axis of a grid of rank {len(shape)}")
    return shape, block_shape, cell_shape


def _check_length(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"length of a Sequence must be an int; got {value!r}: for several axes, use Grid"
        )


def _check_rank(who: str, shape: Any, axes: collections.abc.Sequence[str]) -> None:
    if len(arguments.ints("shape", shape)) != len(axes):
        raise ValueError(f"{who} expects a shape ({', '.join(axes)}); got {shape}")


def grid_shape(who: str, name: str, structure: Any) -> tuple[int, ...]:

    if not isinstance(structure, Grid):
        raise TypeError(f"{who} needs a Grid as {name}; got {type(structure).__name__}")
    return structure.shape


def check_same_rank(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> None:
    if len(shape) != len(key_shape):
        raise ValueError(
            f"queries are on a grid of rank {len(shape)} but keys on one of rank {len(key_shape)}"
        )


def _radii(value: Any, rank: int) -> tuple[int, ...]:
    """One radius for each axis."""
    radii = arguments.ints("radius", value)
    if isinstance(value, int):
        radii = radii * rank
    if len(radii) != rank:
        raise ValueError(f"radius has {len(radii)} entries but the grid has {rank} axes")
    if min(radii) < 0:
        raise ValueError(f"radius must be at least 0; got {value}")
    return radii
