"""Where the sites of a space that grows along time lie in the buffers of a cache.

The space is a grid whose first axis is time, of frames that are all alike (a sequence has frames of
one site). A layer is as many frames as a block is long; buffers hold one layer after another, and
each block by block, so that a block is one run of places.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures import Grid
from ndgpa.structures.base import MakeTable, SpatialStructure
from ndgpa.structures.tables import cached

# The time of a place that no site is in: later than any query.
_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Layout:
    """Frames of the shape `frame`, in blocks and cells along time and the axes of a frame."""

    block: tuple[int, ...]
    cell: tuple[int, ...]
    frame: tuple[int, ...]

    @classmethod
    def of(
        cls,
        block: int | tuple[int, ...],
        cell: int | tuple[int, ...],
        frame: int | tuple[int, ...],
    ) -> "Layout":
        """Complete sizes given as one int for all axes, and check them."""
        frame = arguments.ints("frame", frame)
        sizes = []
        for name, value in (("block", block), ("cell", cell)):
            given = arguments.ints(name, value)
            given = given * (1 + len(frame)) if isinstance(value, int) else given
            if len(given) != 1 + len(frame):
                raise ValueError(
                    f"{name} has {len(given)} entries but time and frame have {1 + len(frame)} axes"
                )
            for size in given:
                arguments.positive_count(name, size)
            sizes.append(given)
        layout = cls(sizes[0], sizes[1], frame)
        assert layout.newest.num_cells  # the grid has checked that the sizes fit a frame
        return layout

    @property
    def frame_sites(self) -> int:
        return math.prod(self.frame)

    @property
    def cell_sites(self) -> int:
        """Sites of the frames that a cell lasts."""
        return self.block[0] * self.cell[0] * self.frame_sites

    @property
    def newest(self) -> Grid:
        """The frames of one layer of cells."""
        return Grid((self.block[0] * self.cell[0], *self.frame), self.block, self.cell, 0)

    @property
    def layer(self) -> Grid:
        """The frames of one layer of blocks."""
        return Grid((self.block[0], *self.frame), self.block)

    @property
    def layer_blocks(self) -> int:
        return self.layer.num_blocks

    @property
    def block_places(self) -> int:
        return math.prod(self.block)

    def whole(self, sites: int) -> Grid:
        """The space of this many sites; a block and a cell are no longer than it."""
        frames = sites // self.frame_sites
        block = (min(self.block[0], frames), *self.block[1:])
        cell = (min(self.cell[0], -(-frames // block[0])), *self.cell[1:])
        return Grid((frames, *self.frame), block, cell, 0)

    def capacity(self, sites: int) -> int:
        """The places of as many whole layers of cells as the sites need."""
        layers = -(-sites // self.cell_sites) * self.cell[0]
        return layers * self.layer_blocks * self.block_places

    def places(self, begin: int, count: int, device: torch.device) -> slice | Int[Tensor, " count"]:
        """The places of the sites from `begin` on."""
        if not self.frame:
            return slice(begin, begin + count)
        sites = torch.arange(begin, begin + count, device=device)
        size = self.block[0] * self.frame_sites
        place = self.layer.to(device)._place_in_cells
        return sites // size * self.layer_blocks * self.block_places + place[sites % size]

    def first_place_of_block_of(self, site: int) -> int:
        """The place that the layer of a site begins with."""
        return site // (self.block[0] * self.frame_sites) * self.layer_blocks * self.block_places

    def times(self, places: int, device: torch.device) -> Int[Tensor, " places"]:
        """The frame of the site in each place."""
        if not self.frame:
            return torch.arange(places, device=device)
        blocks = self.layer.to(device).blocks.flatten()
        frame = (blocks // self.frame_sites).masked_fill(blocks < 0, _NEVER)
        layers = torch.arange(places // len(blocks), device=device)[:, None]
        return torch.where(blocks < 0, frame, frame + layers * self.block[0]).flatten()

    def by_cell(self, x: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h C X d"]:
        """Lay whole frames of one layer of cells out cell by cell."""
        if not self.frame:
            return x[:, :, None]
        frames = x.unflatten(2, (-1, self.frame_sites))
        return self._frame(x.device).partition(frames).transpose(2, 3).flatten(3, 4)

    def by_site(self, x: Float[Tensor, "b h C X d"]) -> Float[Tensor, "b h m d"]:
        """Undo `by_cell`."""
        if not self.frame:
            return x[:, :, 0]
        frame = self._frame(x.device)
        places = frame.cell_sites.shape[1]
        frames = x.unflatten(3, (-1, places)).transpose(2, 3)
        return frame.compose(frames).flatten(2, 3)

    def query_times(self, begin: int, count: int, device: torch.device) -> Int[Tensor, "C X"]:
        """The frame of each query as `by_cell` lays them out."""
        first = begin // self.frame_sites
        frames = torch.arange(first, first + count // self.frame_sites, device=device)
        if not self.frame:
            return frames[None]
        frame = self._frame(device)
        places = frame.cell_sites.shape[1]
        return frames.repeat_interleave(places).expand(frame.num_cells, -1)

    def _frame(self, device: torch.device) -> Grid:
        return Grid(self.frame, self.block[1:], self.cell[1:], device=device)

    def held(self, places: int, device: torch.device) -> SpatialStructure:
        """The space whose sites are the places of the buffers."""
        if not self.frame:
            return Grid((places,), self.block, time_axis=0, device=device)
        return _Places(self, places, device)


class _Places(SpatialStructure):
    """The places of the buffers of a cache as sites; those that no site is in are in no block."""

    def __init__(self, layout: Layout, places: int, device: torch.device) -> None:
        self.layout, self._count, self._on = layout, places, device

    @property
    def num_sites(self) -> int:
        return self._count

    @cached
    def blocks(self) -> Int[Tensor, "B R"]:
        layer = self.layout.layer.to(self._on).blocks
        sites = torch.arange(self._count, device=self._on).view(-1, *layer.shape)
        return torch.where(layer < 0, -1, sites).flatten(0, 1)

    @cached
    def cells(self) -> Int[Tensor, "C 1"]:
        return torch.arange(self.num_blocks, device=self._on)[:, None]

    @property
    def is_even(self) -> bool:
        return self.layout.layer.is_even

    @cached
    def time(self) -> Int[Tensor, " n"]:
        return self.layout.times(self._count, self._on)

    @property
    def device(self) -> torch.device:
        return self._on

    def _move(self, device: torch.device) -> "_Places":
        return _Places(self.layout, self._count, device)

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        raise NotImplementedError(
            "the frames of a cache are not coarsened: a rule of several levels needs frame=()"
        )


class NewestCells(SpatialStructure):
    """One whole layer of cells, as a structure that needs no table to be searched.

    Args:
        layout: Of the cache.
        number: Which layer of cells.
    """

    def __init__(self, layout: Layout, number: int, device: torch.device) -> None:
        self.layout, self.number = layout, number
        self._grid = layout.newest.to(device)

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._grid.blocks

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self._grid.cells

    @property
    def time(self) -> Int[Tensor, " n"]:
        time = self._grid.time
        assert time is not None
        return self.number * self.layout.newest.shape[0] + time

    @property
    def num_sites(self) -> int:
        return self._grid.num_sites

    @property
    def is_even(self) -> bool:
        return self._grid.is_even

    @property
    def device(self) -> torch.device:
        return self._grid.device

    def _move(self, device: torch.device) -> "NewestCells":
        return NewestCells(self.layout, self.number, device)

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        raise NotImplementedError("queries of a cache are not coarsened")

    def kept_with(self, other: SpatialStructure, name: Hashable, make: MakeTable) -> Tensor:
        """Keep nothing: there is another cell before a table is asked for again."""
        return make(self, other)

    def overlapping(self, key_structure: SpatialStructure) -> Int[Tensor, "C E"]:
        own = torch.arange(self._past, self.num_blocks, device=self.device)
        return (self._first_block + own).expand(self.num_cells, -1)

    def count_candidates(self, key_structure: SpatialStructure, causal: bool) -> Int[Tensor, " C"]:
        assert causal
        past = self._first_block + self._past
        return torch.full((self.num_cells,), past, device=self.device)

    @property
    def _first_block(self) -> int:
        return self.number * self.num_blocks

    @property
    def _past(self) -> int:
        """How many of its blocks are over as it begins: the first layer, if it is one frame."""
        return self.layout.layer_blocks if self.layout.block[0] == 1 else 0
