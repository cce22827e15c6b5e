"""What one rank holds of a space: a run of its cells, as a structure of its own."""

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ndgpa.distributed.layout import Layout, lay_out
from ndgpa.distributed.placement import Placement
from ndgpa.structures import Sampling, SpatialStructure
from ndgpa.structures.base import MakeTable, check_structure
from ndgpa.structures.tables import cached, lookup


def shard(
    structure: SpatialStructure, mesh: DeviceMesh, placement: Placement | None = None
) -> "Part":
    """Give this rank its part of a space: a run of cells, of about as many sites on every rank.

    Nothing is sent; every rank calls it with the same arguments. The structure itself, which is
    index tables, stays whole on every rank.

    Args:
        structure: The whole space, the same on all ranks.
        mesh: One dimension of a mesh, such as `mesh["context"]`.
        placement: The order of the cells that is cut into runs, e.g. `Hilbert()`; None keeps their
            own.

    Raises:
        TypeError, ValueError: The mesh has several dimensions, or an argument is of a wrong type.
        NotImplementedError: The space has special tokens.
    """
    check_structure("structure", structure)
    _check_no_tokens(structure)
    check_mesh(mesh)
    return Part(lay_out(structure, mesh.size(), placement), mesh.get_local_rank(), mesh)


class Part(SpatialStructure):
    """The cells of one rank, their blocks and their sites, numbered from 0 cell after cell.

    As a structure it is the space of this rank's queries, or of this rank's keys. What it says of
    blocks of other ranks (`kept_with`) comes from the whole, row by row. `ndgpa.gpa` takes it for a
    space of its own, that is, attends within it; `ndgpa.distributed.gpa` attends to the whole.

    Attributes:
        layout: Which rank holds what.
        rank: Whose part it is.
        mesh: The ranks.
        sites: (n,), the sites of the whole that this rank holds, in the order of the part.
        cell_ids, block_ids: Its cells and blocks in the whole.
    """

    def __init__(self, layout: Layout, rank: int, mesh: DeviceMesh) -> None:
        self.layout, self.rank, self.mesh = layout, rank, mesh
        # The name of the process group, by which operators find it.
        self.group_name: str = mesh.get_group().group_name
        self._lay_out(layout.cells_of(rank))
        # What is cached is worked out now: a compiled graph would not keep it.
        self._known = (self.stand_in, self.index, self.fingerprint, layout.sites_per_rank)

    def _lay_out(self, cell_ids: Tensor) -> None:
        """Take the rows of these cells from the tables of the whole."""
        whole = self.layout.structure
        cells = whole.cells[cell_ids]
        self.cell_ids, self.block_ids = cell_ids, cells[cells >= 0]
        blocks = whole.blocks[self.block_ids]
        self.sites: Int[Tensor, " n"] = blocks[blocks >= 0]
        self._cells, self._blocks = _renumbered(cells), _renumbered(blocks)
        self._is_even = bool((cells >= 0).all()) and bool((blocks >= 0).all())

    def __repr__(self) -> str:
        return f"Part({self.rank} of {self.layout.ranks}, {self.whole})"

    @property
    def whole(self) -> SpatialStructure:
        """The space of which this is a part."""
        return self.layout.structure

    @cached
    def stand_in(self) -> "Part":
        """The part itself, or, on a rank without cells, one with the first cell of the whole.

        So a rank that has nothing takes the same steps as the others, with zeros.
        """
        if self.num_cells:
            return self
        other = object.__new__(Part)
        other.layout, other.rank, other.mesh = self.layout, self.rank, self.mesh
        other.group_name, other.index = self.group_name, self.index
        other._lay_out(self.layout.order[:1])
        return other

    @cached
    def index(self) -> Int[Tensor, " B"]:
        """Where each block of the whole stands when all ranks have laid down as many rows."""
        longest = max(self.layout.blocks_per_rank)
        return self.layout.rank_of_block * longest + self.layout.place_of_block

    @cached
    def fingerprint(self) -> str:
        """Digits that tell this sharding of this space from others, the same on all ranks."""
        layout, whole = self.layout, self.whole
        tables = (layout.order, whole.cells, whole.blocks, torch.tensor(layout.starts))
        said = hashlib.blake2b(digest_size=8)
        for table in (*tables, *(x for x in (whole.time, whole.group) if x is not None)):
            said.update(table.cpu().contiguous().numpy().tobytes())
        return said.hexdigest()

    # The structure of the part

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._blocks

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self._cells

    @property
    def num_sites(self) -> int:
        return len(self.sites)

    @property
    def is_even(self) -> bool:
        return self._is_even

    @cached
    def time(self) -> Int[Tensor, " n"] | None:
        return None if self.whole.time is None else self.whole.time[self.sites]

    @cached
    def group(self) -> Int[Tensor, " B"] | None:
        return None if self.whole.group is None else self.whole.group[self.block_ids]

    @cached
    def block_span(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        first, last = self.whole.block_span
        return first[self.block_ids], last[self.block_ids]

    def _move(self, device: torch.device) -> "Part":
        layout = self.layout
        layout = Layout(layout.structure.to(device), layout.order.to(device), layout.starts)
        return Part(layout, self.rank, self.mesh)

    def coarsen(self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1) -> Any:
        raise NotImplementedError("a part is not coarsened; coarsen the whole, and shard that")

    def kept_with(self, other: SpatialStructure, name: Hashable, make: MakeTable) -> Tensor:
        """Take this part's rows of a table that the whole makes, one row for each cell."""
        if other is self:
            return super().kept_with(other, name, make)
        return self.whole.kept_with(other, name, make)[self.cell_ids]

    # Sites in order of cells: what is even lies as it is wanted already

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        if not self.is_even:
            return super().partition(x)
        return x.unflatten(-2, (self.num_cells, -1))

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        return parts.flatten(-3, -2) if self.is_even else super().compose(parts)

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        return x.unflatten(-2, (self.num_blocks, -1)) if self.is_even else super().by_block(x)

    # Between the whole and the part

    def take(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch m d"]:
        """Take this rank's sites of features of the whole."""
        return x.index_select(-2, self.sites.to(x.device))

    def sites_read_by(self, read: Sampling) -> Int[Tensor, "B S"]:
        """List the sites that are read of each block of this rank, in its own numbers.

        Raises:
            NotImplementedError: Some of them are of other ranks.
        """

        def make(own: SpatialStructure, _: SpatialStructure) -> Tensor:
            return self._numbers_of(read.sites(self.whole)[self.block_ids])

        sites = self.kept_with(self, ("read", repr(read)), make)
        if not torch.compiler.is_compiling() and bool((sites == -2).any()):
            raise NotImplementedError(
                f"{read} reads sites of other blocks, which may be on other ranks"
            )
        return sites

    def _numbers_of(self, sites: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Number sites of the whole as those of the part; -2 for one of another rank."""
        own = torch.full((self.whole.num_sites,), -2, device=sites.device)
        own[self.sites] = torch.arange(self.num_sites, device=sites.device)
        return lookup(own[:, None], sites)[..., 0]


def _check_no_tokens(structure: SpatialStructure) -> None:
    if structure.inner is not structure:
        raise NotImplementedError(
            f"{structure!r} has special tokens, which are not shared out; shard the space without "
            "them"
        )


def check_mesh(mesh: Any) -> None:
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(
            f"mesh must be a DeviceMesh, from torch.distributed.init_device_mesh; got "
            f"{type(mesh).__name__}"
        )
    if mesh.ndim != 1:
        name = (mesh.mesh_dim_names or ("its name",))[0]
        raise ValueError(
            f"mesh must have one dimension; got {mesh.ndim}: pass one of them, as mesh[{name!r}]"
        )


def check_part(name: str, part: Any) -> None:
    check_structure(name, part)
    if not isinstance(part, Part):
        raise TypeError(
            f"{name} must be a part, from ndgpa.distributed.shard; got {type(part).__name__}: pass "
            "mesh= to have it sharded"
        )


def _renumbered(table: Int[Tensor, "rows R"]) -> Int[Tensor, "rows R"]:
    """Number the members 0, 1, 2, ... in their order; -1 stays."""
    there = (table >= 0).flatten()
    return (there.cumsum(0) - 1).masked_fill(~there, -1).view(table.shape)
