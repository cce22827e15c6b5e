"""Grids of any rank: sequences, images, video, and beyond."""

import collections.abc
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.boxes import (
    ceil_div,
    join_axes,
    number_boxes,
    outer,
    pad,
    split_axes,
    sum_runs,
)
from ndgpa.structures.tables import cached

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
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        return self.on

    def _move(self, device: torch.device) -> "Grid":
        return Grid(self.shape, self.block_shape, self.cell_shape, self.time_axis, device)

    def coarsen(self, factor: PerAxis, cell: PerAxis = 1) -> "Grid":
        """Make the grid whose sites are the blocks; an int is cut to each axis."""
        blocks = self.grid_of_blocks
        if isinstance(factor, int):
            factor = tuple(min(factor, count) for count in blocks)
        return Grid(blocks, factor, cell, self.time_axis, self.on)

    def near_cells(self, radius: PerAxis) -> Int[Tensor, "C W"]:
        """List the blocks whose distance to the cell is at most `radius` along every axis."""
        radii = _radii(radius, len(self.shape))
        near = torch.zeros(1, 1, dtype=torch.int64, device=self.on)
        for count, cell, reach in zip(self.grid_of_blocks, self.cell_shape, radii):
            width = min(cell + 2 * reach, count)
            begins = torch.arange(0, count, cell, device=self.on)
            ends = (begins + cell + reach).clamp(max=count)
            along = (begins - reach).clamp(min=0)[:, None] + torch.arange(width, device=self.on)
            along = along.masked_fill(along >= ends[:, None], -1)
            near = outer(near, along, count)
        return near

    def strided_blocks(self, step: int) -> Int[Tensor, "B S"]:
        """List every `step`-th site of each block along every axis."""
        boxes = self.blocks.view(-1, *self.block_shape)
        every = (slice(None), *(slice(None, None, step) for _ in self.shape))
        return boxes[every].flatten(1)

    def halo_blocks(self, reach: PerAxis) -> Int[Tensor, "B S"]:
        """List the sites whose distance to the block is at most `reach` along every axis."""
        return Grid(self.shape, 1, self.block_shape, device=self.on).near_cells(reach)

    # Sizes, without the tables

    @property
    def grid_of_blocks(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return ceil_div(self.shape, self.block_shape)

    @property
    def grid_of_cells(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return ceil_div(self.grid_of_blocks, self.cell_shape)

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
        return tuple(count * e for count, e in zip(ceil_div(self.shape, extent), extent))

    # Tables

    @cached
    def blocks(self) -> Int[Tensor, "B R"]:
        return number_boxes(self.shape, self.block_shape, self.on)

    @cached
    def cells(self) -> Int[Tensor, "C P"]:
        return number_boxes(self.grid_of_blocks, self.cell_shape, self.on)

    @cached
    def time(self) -> Int[Tensor, " n"] | None:
        if self.time_axis is None:
            return None
        steps = torch.arange(self.shape[self.time_axis], device=self.on)
        across = [-1 if axis == self.time_axis else 1 for axis in range(len(self.shape))]
        return steps.view(across).expand(self.shape).reshape(-1).contiguous()

    def span_of_blocks(
        self, first: Int[Tensor, " n"], last: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Find the earliest time in each block, and the latest that a whole block would have.

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
            sums = sum_runs(sums, axis - len(self.shape) - 1, width)
        return sums.flatten(-len(self.shape) - 1, -2)

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        grid = pad(x.unflatten(-2, self.shape), self._padded_to(self._cell_extent))
        grid = split_axes(grid, self.grid_of_cells, self.cell_shape, self.block_shape)
        sites_per_cell = self.blocks_per_cell * self.sites_per_block
        return grid.reshape(*x.shape[:-2], self.num_cells, sites_per_cell, x.shape[-1])

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        batch = parts.shape[:-3]
        grid = join_axes(parts, self.grid_of_cells, self.cell_shape, self.block_shape)
        for axis, size in enumerate(self.shape):
            grid = grid.narrow(len(batch) + axis, 0, size)
        return grid.reshape(*batch, self.num_sites, parts.shape[-1])

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        grid = pad(x.unflatten(-2, self.shape), self._padded_to(self.block_shape))
        grid = split_axes(grid, self.grid_of_blocks, self.block_shape)
        return grid.reshape(*x.shape[:-2], self.num_blocks, self.sites_per_block, x.shape[-1])


def Sequence(length: int, block: int, cell: int = 1) -> Grid:
    """Make a grid of one axis whose time is the index: samples, frames, tokens.

    Args:
        length: Sites.
        block: Sites in a block; the last block may have fewer.
        cell: Blocks in a cell; the last cell may have fewer.

    Raises:
        ValueError: The length is below 1, or a factor is below 1 or larger than what it divides.
        TypeError: An argument is not an int.

    Example:
        `Sequence(4096, block=16, cell=4)` has 256 blocks in 64 cells.
    """
    _check_length(length)
    return Grid((length,), block, cell, time_axis=0)


def Image(shape: tuple[int, int], block: PerAxis, cell: PerAxis = 1) -> Grid:
    """Make a grid of (height, width), which has no time.

    Args:
        shape: Height and width in sites. Features are flattened in raster order:
            `x.flatten(2).mT` makes (batch, sites, channels) of (batch, channels, height, width).
        block: Height and width of a block in sites; one int for both. At the lower and right
            border a block may be smaller.
        cell: Height and width of a cell in blocks; one int for both.

    Raises:
        ValueError: The shape has not two axes, an axis is empty, or a factor is below 1 or larger
            than its axis.
        TypeError: A size is not an int.

    Example:
        `Image((256, 256), block=4, cell=2)` has 64x64 blocks of 4x4 sites in 32x32 cells.
    """
    _check_rank("Image", shape, ("height", "width"))
    return Grid(shape, block, cell)


def Video(shape: tuple[int, int, int], block: PerAxis, cell: PerAxis = 1) -> Grid:
    """Make a grid of (frames, height, width) whose time is the frame.

    Args:
        shape: Frames, height and width in sites, flattened in raster order, the width fastest.
        block: Frames, height and width of a block in sites; one int for all three.
        cell: Frames, height and width of a cell in blocks; one int for all three.

    Raises:
        ValueError: The shape has not three axes, an axis is empty, or a factor is below 1 or larger
            than its axis.
        TypeError: A size is not an int.

    Example:
        `Video((16, 32, 32), block=(1, 4, 4), cell=(1, 2, 2))` has blocks of 4x4 sites of one frame,
        so that causal attention sees whole frames.
    """
    _check_rank("Video", shape, ("frames", "height", "width"))
    return Grid(shape, block, cell, time_axis=0)


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
    blocks = ceil_div(shape, block_shape)
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
    """The shape of a structure that must be a Grid."""
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
