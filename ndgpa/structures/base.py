"""What a space is: sites in blocks, blocks in cells, and the paper's operators on them.

A structure is two index tables. Everything else (Definitions 1 to 5 of Jetchev et al. 2021, and
what the engine needs besides) follows from the tables and is written here once; a structure may
override a method with a faster form of the same function.
"""

import abc
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._ops import outside_traces
from ndgpa.structures.candidates import blocks_between, count_candidates
from ndgpa.structures.copies import KeepsCopies
from ndgpa.structures.tables import (
    cached,
    lookup,
    place_of_member,
    row_of_member,
    span_of_rows,
    take_sites,
)

MakeTable = Callable[["SpatialStructure", "SpatialStructure"], Tensor]


class SpatialStructure(KeepsCopies):
    """A space of `num_sites` sites, numbered from 0 in their natural order.

    Every site is in exactly one block, every block in exactly one cell. Rows of both tables have
    one length; a row with fewer members holds -1 in the places that are left, wherever they are.

    A structure never changes. A copy for another device comes from `to`.

    A new structure is four members: the tables `blocks` and `cells`, `coarsen`, and `_move`, which
    makes the copy that `to` keeps.
    """

    @property
    @abc.abstractmethod
    def blocks(self) -> Int[Tensor, "B R"]:
        """The sites of each block, int64, -1 for an empty place."""

    @property
    @abc.abstractmethod
    def cells(self) -> Int[Tensor, "C P"]:
        """The blocks of each cell, int64, -1 for an empty place."""

    @abc.abstractmethod
    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> "SpatialStructure":
        """Make the structure whose sites are this one's blocks.

        Args:
            factor: How many of these blocks make one of its blocks.
            cell: How many of its blocks make one of its cells.
        """

    def near_cells(self, radius: int | tuple[int, ...]) -> Int[Tensor, "C W"]:
        """List the blocks within a radius of each cell, its own among them; -1 for an empty slot.

        Only where a structure knows what is near.

        Args:
            radius: In blocks, from the nearest block of the cell; on a grid one for each axis.
        """
        raise NotImplementedError(_no_neighborhood(type(self).__name__))

    def strided_blocks(self, step: int) -> Int[Tensor, "B S"]:
        """List every `step`-th site of each block; -1 for an empty place."""
        return self.blocks[:, ::step]

    def halo_blocks(self, reach: int | tuple[int, ...]) -> Int[Tensor, "B S"]:
        """List the sites of each block and those within `reach`; -1 for an empty place.

        Only where a structure knows what is near.
        """
        raise NotImplementedError(_no_neighborhood(type(self).__name__))

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        """The time of each site, int64; causal attention sees its own and earlier times.

        None where a space has no time.
        """
        return None

    @property
    def group(self) -> Int[Tensor, " B"] | None:
        """The space that each block belongs to, where several disjoint spaces are batched as one.

        Blocks of another group are invisible. A cell lies within one group. None for one space.
        """
        return None

    # Special tokens

    @property
    def inner(self) -> "SpatialStructure":
        """The space without its special tokens; this one where there are none."""
        return self

    @property
    def prefix(self) -> int:
        """How many special tokens come before the sites of `inner`."""
        return 0

    @property
    def suffix(self) -> int:
        """How many special tokens come after the sites of `inner`."""
        return 0

    # Sizes

    @cached
    def num_sites(self) -> int:
        return int((self._with_values.blocks >= 0).sum())

    @property
    def num_blocks(self) -> int:
        return self.blocks.shape[0]

    @property
    def num_cells(self) -> int:
        return self.cells.shape[0]

    @property
    def sites_per_block(self) -> int:
        """The places of a row of `blocks`: the sites of the largest block, or a few more."""
        return self.blocks.shape[1]

    @property
    def blocks_per_cell(self) -> int:
        """The places of a row of `cells`."""
        return self.cells.shape[1]

    @cached
    def is_even(self) -> bool:
        """Whether no table has an empty place; False where there are no values to tell it by."""
        tables = self._with_values.blocks, self._with_values.cells
        return not tables[0].is_meta and all(bool((x >= 0).all()) for x in tables)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.blocks.device

    # Tables that follow from the two

    @cached
    def block_sizes(self) -> Int[Tensor, " B"]:
        """How many sites each block has."""
        return (self.blocks >= 0).sum(dim=1)

    @cached
    def cell_sites(self) -> Int[Tensor, "C PR"]:
        """The sites of each cell, block after block; -1 for an empty place."""
        return self.upsample(self.cells).flatten(1)

    @cached
    def block_of_site(self) -> Int[Tensor, " n"]:
        """The block that each site is in."""
        return row_of_member(self.blocks, self.num_sites)

    @cached
    def cell_of_block(self) -> Int[Tensor, " B"]:
        """The cell that each block is in."""
        return row_of_member(self.cells, self.num_blocks)

    @cached
    def cell_of_site(self) -> Int[Tensor, " n"]:
        """The cell that each site is in."""
        return self.cell_of_block[self.block_of_site]

    @cached
    def _place_in_cells(self) -> Int[Tensor, " n"]:
        """Where each site stands in the flattened `cell_sites`."""
        return place_of_member(self.cell_sites, self.num_sites)

    # Spans of time, for causal attention

    @cached
    def block_span(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The earliest and the latest time in each block; only where there is time."""
        assert self.time is not None
        return self.span_of_blocks(self.time, self.time)

    def span_of_blocks(
        self, first: Int[Tensor, " n"], last: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The earliest and the latest time in each block, given those in each site."""
        return span_of_rows(first, last, self.blocks)

    @cached
    def cell_span(self) -> tuple[Int[Tensor, " C"], Int[Tensor, " C"]]:
        """The earliest and the latest time in each cell; only where there is time."""
        return span_of_rows(*self.block_span, self.cells)

    @cached
    def first_in_cell(self) -> Bool[Tensor, " n"]:
        """Which sites have the earliest time of their cell; only where there is time."""
        assert self.time is not None
        return self.time == self.cell_span[0][self.cell_of_site]

    @cached
    def cell_group(self) -> Int[Tensor, " C"] | None:
        """The space that each cell belongs to; None for one space."""
        return None if self.group is None else self.group[self.cells.amax(dim=1)]

    # What a causal cell may choose from

    def overlapping(self, key_structure: "SpatialStructure") -> Int[Tensor, "C E"]:
        """List the key blocks that each cell can see in part: they last beyond its earliest time.

        Returns:
            Their numbers, ascending, -1 for an empty slot; as wide as the longest row.
        """
        return self.kept_with(key_structure, "overlapping", _overlapping)

    def count_candidates(
        self, key_structure: "SpatialStructure", causal: bool
    ) -> Int[Tensor, " C"]:
        """Count the key blocks of each cell's group; if causal, those wholly past as it begins."""
        count = _count_past if causal else _count_in_group
        return self.kept_with(key_structure, count.__name__, count)

    # What was made once with another structure, and is kept for the next call

    @cached
    def _kept(self) -> "WeakKeyDictionary[SpatialStructure, dict[Hashable, Tensor]]":
        return WeakKeyDictionary()

    def kept_with(self, other: "SpatialStructure", name: Hashable, make: MakeTable) -> Tensor:
        """Make a table of this structure and another one at its first use, and keep it.

        On device "meta" it is made from the structures that were copied there, which have values.
        """
        if torch.compiler.is_dynamo_compiling():
            return make(self, other)
        tables = self._kept.setdefault(other, {})
        if name not in tables:
            with outside_traces():
                tables[name] = make(self._with_values, other._with_values).to(self.device)
        return tables[name]

    @cached
    def _coarsened(self) -> "dict[int | tuple[int, ...], SpatialStructure]":
        return {}

    def coarsened(self, factor: int | tuple[int, ...]) -> "SpatialStructure":
        """Make what `coarsen` makes, once."""
        kept = self._coarsened
        if factor in kept:
            return kept[factor]
        if torch.compiler.is_dynamo_compiling():
            return self._with_values.coarsen(factor).to(self.device)
        with outside_traces():
            kept[factor] = self._with_values.coarsen(factor).to(self.device)
        return kept[factor]

    # The paper's operators

    def downsample(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B d"]:
        """Average the features over the sites of each block.

        Source: Definition 1 of Jetchev et al. 2021 (the paper's D_d).

        Args:
            x: Features of the n sites, any floating dtype.

        Returns:
            The means, in the dtype of `x`; sums are taken in float32 or wider.
        """
        sums = self.block_sums(x)
        return (sums / self.block_sizes[:, None]).to(x.dtype)

    def block_sums(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B d"]:
        """The sum of the features over the sites of each block, in float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.by_block(x).sum(dim=-2, dtype=wide)

    def upsample(self, block_ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape R"]:
        """List the sites of the blocks named.

        Source: Definition 2 (the paper's U_d).

        Args:
            block_ids: Numbers of blocks; -1 names none.

        Returns:
            Their sites, int64; -1 in the empty places of a block and for a block -1.
        """
        return lookup(self.blocks, block_ids)

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        """Cut the features into cells, each laid out as a row of `cell_sites`.

        Source: Definition 3 (the paper's F_m).

        Returns:
            The parts; zeros in the empty places.
        """
        return take_sites(x, self.cell_sites, full=self.is_even)

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        """Put the cells together again; what stands in empty places is dropped.

        Source: Definition 4 (the paper's F_m^-1).
        """
        return parts.flatten(-3, -2).index_select(-2, self._place_in_cells)

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        """Lay the features out block by block, as the rows of `blocks`; zeros in empty places."""
        return take_sites(x, self.blocks, full=self.is_even)


def check_structure(name: str, x: Any) -> None:
    if not isinstance(x, SpatialStructure):
        raise TypeError(f"{name} must be a SpatialStructure; got {type(x).__name__}")


def _no_neighborhood(name: str) -> str:
    return f"{name} does not know which blocks are near a cell; use a Grid"


def _overlapping(own: SpatialStructure, keys: SpatialStructure) -> Tensor:
    return blocks_between(*own.cell_span, *keys.block_span, own.cell_group, keys.group)


def _count_past(own: SpatialStructure, keys: SpatialStructure) -> Tensor:
    return count_candidates(*_groups(own, keys), own.cell_span[0], keys.block_span[1])


def _count_in_group(own: SpatialStructure, keys: SpatialStructure) -> Tensor:
    groups = _groups(own, keys)
    return count_candidates(*groups, *(torch.zeros_like(group) for group in groups))


def _groups(own: SpatialStructure, keys: SpatialStructure) -> tuple[Tensor, Tensor]:
    """The space of each cell and of each key block; zeros where there is one space."""
    if own.cell_group is not None and keys.group is not None:
        return own.cell_group, keys.group
    one = torch.zeros(own.num_cells + keys.num_blocks, dtype=torch.int64, device=own.device)
    return one[: own.num_cells], one[own.num_cells :]
