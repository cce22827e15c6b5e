"""What a space is: sites in blocks, blocks in cells, and the paper's operators on them.

A structure is two index tables. Everything else (Definitions 1 to 5 of Jetchev et al. 2021, and
what the engine needs besides) follows from the tables and is written here once; a structure may
override a method with a faster form of the same function.
"""

import abc
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

T = TypeVar("T")
MakeTable = Callable[["SpatialStructure", "SpatialStructure"], Tensor]


class table(Generic[T]):
    """A property that is computed at its first use and kept.

    What is computed inside a trace is not kept: it is a stand-in for a tensor. What is computed in
    inference mode is an ordinary tensor, that a later backward may save.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, structure: None, owner: type) -> "table[T]": ...

    @overload
    def __get__(self, structure: Any, owner: type | None = None) -> T: ...

    def __get__(self, structure: Any, owner: type | None = None) -> "T | table[T]":
        if structure is None:
            return self
        if torch.compiler.is_compiling():
            return self.compute(structure)
        with torch.inference_mode(False):
            value = self.compute(structure)
        if not isinstance(value, Tensor) or type(value) is Tensor:
            structure.__dict__[self.name] = value
        return value


class SpatialStructure(abc.ABC):
    """A space of `num_sites` sites, numbered from 0 in their natural order.

    Every site is in exactly one block, every block in exactly one cell. Rows of both tables have
    one length; a row with fewer members holds -1 in the places that are left, wherever they are.

    A structure never changes. A copy for another device comes from `to`.
    """

    @property
    @abc.abstractmethod
    def blocks(self) -> Int[Tensor, "B R"]:
        """The sites of each block, int64, -1 for an empty place."""

    @property
    @abc.abstractmethod
    def cells(self) -> Int[Tensor, "C P"]:
        """The blocks of each cell, int64, -1 for an empty place."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the tables are."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> "SpatialStructure":
        """The same structure with its tables on `device`; made once for each device."""

    @abc.abstractmethod
    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> "SpatialStructure":
        """The structure whose sites are this one's blocks.

        Args:
            factor: Its downsampling: how many of these blocks make one of its blocks.
            cell: Its cells: how many of its blocks make one of its cells.
        """

    def near_cells(self, radius: int | tuple[int, ...]) -> Int[Tensor, "C W"]:
        """The blocks within a radius of each cell, its own among them; -1 for an empty slot.

        Only where a structure knows what is near.

        Args:
            radius: In blocks, from the nearest block of the cell; on a grid one for each axis.
        """
        raise NotImplementedError(_no_neighborhood(type(self).__name__))

    def strided_blocks(self, step: int) -> Int[Tensor, "B S"]:
        """Every `step`-th site of each block; -1 for an empty place."""
        return self.blocks[:, ::step]

    def halo_blocks(self, reach: int | tuple[int, ...]) -> Int[Tensor, "B S"]:
        """The sites of each block and those within `reach`; -1 for an empty place.

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

    # Sizes

    @property
    def num_sites(self) -> int:
        return int((self.blocks >= 0).sum())

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

    @property
    def is_partition(self) -> bool:
        """Whether every site is in exactly one block, as all structures promise but those that are
        only attended to (`Sampled`)."""
        return True

    @table
    def is_even(self) -> bool:
        """Whether no table has an empty place; False on device "meta", where nothing can tell."""
        if self.blocks.is_meta:
            return False
        return bool((self.blocks >= 0).all() and (self.cells >= 0).all())

    # Tables that follow from the two

    @table
    def block_sizes(self) -> Int[Tensor, " B"]:
        """How many sites each block has."""
        return (self.blocks >= 0).sum(dim=1)

    @table
    def cell_sites(self) -> Int[Tensor, "C PR"]:
        """The sites of each cell, block after block; -1 for an empty place."""
        return self.upsample(self.cells).flatten(1)

    @table
    def block_of_site(self) -> Int[Tensor, " n"]:
        """The block that each site is in."""
        return _row_of_member(self.blocks, self.num_sites)

    @table
    def cell_of_block(self) -> Int[Tensor, " B"]:
        """The cell that each block is in."""
        return _row_of_member(self.cells, self.num_blocks)

    @table
    def cell_of_site(self) -> Int[Tensor, " n"]:
        """The cell that each site is in."""
        return self.cell_of_block[self.block_of_site]

    @table
    def _place_in_cells(self) -> Int[Tensor, " n"]:
        """Where each site stands in the flattened `cell_sites`."""
        return _place_of_member(self.cell_sites, self.num_sites)

    # Spans of time, for causal attention

    @table
    def block_span(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The earliest and the latest time in each block; only where there is time."""
        assert self.time is not None
        return self.span_of_blocks(self.time, self.time)

    def span_of_blocks(
        self, first: Int[Tensor, " n"], last: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The earliest and the latest time in each block, given those in each site."""
        return _span(first, last, self.blocks)

    @table
    def cell_span(self) -> tuple[Int[Tensor, " C"], Int[Tensor, " C"]]:
        """The earliest and the latest time in each cell; only where there is time."""
        return _span(*self.block_span, self.cells)

    @table
    def first_in_cell(self) -> Bool[Tensor, " n"]:
        """Which sites have the earliest time of their cell; only where there is time."""
        assert self.time is not None
        return self.time == self.cell_span[0][self.cell_of_site]

    @table
    def cell_group(self) -> Int[Tensor, " C"] | None:
        """The space that each cell belongs to; None for one space."""
        return None if self.group is None else self.group[self.cells.amax(dim=1)]

    # What was made once and is kept for the next call

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made with other structures: those are referred to weakly."""
        return {k: x for k, x in self.__dict__.items() if k not in ("_kept", "_coarsened")}

    @table
    def _kept(self) -> "WeakKeyDictionary[SpatialStructure, dict[Hashable, Tensor]]":
        return WeakKeyDictionary()

    def kept_with(self, other: "SpatialStructure", name: Hashable, make: MakeTable) -> Tensor:
        """A table of this structure and another one, made at its first use.

        On device "meta" it is made from the structures that were copied there, which have values.
        """
        if torch.compiler.is_compiling():
            return make(self, other)
        tables = self._kept.setdefault(other, {})
        if name not in tables:
            with torch.inference_mode(False):
                tables[name] = self._made_with(other, make)
        return tables[name]

    def _made_with(self, other: "SpatialStructure", make: MakeTable) -> Tensor:
        if self.device.type != "meta":
            return make(self, other)
        return make(self.to("cpu"), other.to("cpu")).to("meta")

    @table
    def _coarsened(self) -> "dict[int | tuple[int, ...], SpatialStructure]":
        return {}

    def coarsened(self, factor: int | tuple[int, ...]) -> "SpatialStructure":
        """What `coarsen` makes, made once."""
        kept = self._coarsened
        if factor in kept:
            return kept[factor]
        if self.device.type == "meta":
            made = self.to("cpu").coarsened(factor).to("meta")
        else:
            made = self.coarsen(factor)
        if not torch.compiler.is_compiling():
            kept[factor] = made
        return made

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


def lookup(table: Int[Tensor, "rows R"], ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape R"]:
    """Rows of a table by number; a number -1 gives a row of -1."""
    rows = table[ids.clamp(min=0).long()]
    return rows.masked_fill((ids < 0)[..., None], -1)


def _span(
    first: Int[Tensor, " members"], last: Int[Tensor, " members"], rows: Int[Tensor, "rows R"]
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The earliest and the latest time of the members of each row."""
    limits, empty = torch.iinfo(torch.int64), rows < 0
    members = rows.clamp(min=0)
    earliest = first[members].masked_fill(empty, limits.max).amin(dim=1)
    return earliest, last[members].masked_fill(empty, limits.min).amax(dim=1)


def take_sites(
    x: Float[Tensor, "*batch n d"], sites: Int[Tensor, "rows R"], full: bool = False
) -> Float[Tensor, "*batch rows R d"]:
    """Features of the sites named, zeros where a site is -1; `full` promises that none is."""
    if full:
        return x.index_select(-2, sites.flatten()).unflatten(-2, sites.shape)
    taken = x.index_select(-2, sites.flatten().clamp(min=0)).unflatten(-2, sites.shape)
    empty: Bool[Tensor, "rows R"] = sites < 0
    return taken.masked_fill_(empty[..., None], 0)


def _row_of_member(table: Int[Tensor, "rows R"], count: int) -> Int[Tensor, " count"]:
    """For each of `count` members of a table, the row that it stands in."""
    return _place_of_member(table, count) // table.shape[1]


def _place_of_member(table: Int[Tensor, "rows R"], count: int) -> Int[Tensor, " count"]:
    """For each of `count` members of a table, where it stands in the flattened table."""
    flat = table.flatten()
    places = torch.empty(count + 1, dtype=torch.int64, device=table.device)  # the last for -1
    member = torch.where(flat < 0, count, flat)
    places.scatter_(0, member, torch.arange(len(flat), device=table.device))
    return places[:-1]


def check_structure(name: str, x: Any) -> None:

    if not isinstance(x, SpatialStructure):
        raise TypeError(f"{name} must be a SpatialStructure; got {type(x).__name__}")


def _no_neighborhood(name: str) -> str:
    return f"{name} does not know which blocks are near a cell; use a Grid"
