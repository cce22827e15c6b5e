"""Any partition, given as two int vectors."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure


class Clusters(SpatialStructure):
    """Sites in blocks of any size, blocks in cells of any size.

    Args:
        block_of_site: (n,) int, the block of each site. Blocks are numbered from 0 without gaps.
        cell_of_block: (B,) int, the cell of each block. Cells are numbered from 0 without gaps.
        time: (n,) int or None, the time of each site, for causal attention.
        group: (B,) int or None, the space of each block where several are batched as one: a block
            does not see blocks of another group. A cell must lie within one group.

    Raises:
        ValueError: A vector is empty, has the wrong length, leaves a number out, or a cell holds
            blocks of two groups.
        TypeError: A vector is not of an integer dtype.
    """

    def __init__(
        self,
        block_of_site: Int[Tensor, " n"],
        cell_of_block: Int[Tensor, " B"],
        time: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " B"] | None = None,
    ) -> None:
        _check_vectors(block_of_site, cell_of_block, time, group)
        self._sites = len(block_of_site)
        self._tables = (
            _members(block_of_site),
            _members(cell_of_block),
            None if time is None else time.long(),
            None if group is None else group.long(),
        )
        # Known from the start: a compiled graph cannot ask for it, and a GPU would be waited for.
        self._is_even = all(bool((x >= 0).all()) for x in self._tables[:2])
        self._copies: dict[torch.device, Clusters] = {}

    def __repr__(self) -> str:
        return (
            f"Clusters({self.num_sites} sites, {self.num_blocks} blocks of at most "
            f"{self.sites_per_block}, {self.num_cells} cells of at most {self.blocks_per_cell})"
        )

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    def to(self, device: torch.device | str) -> "Clusters":
        device = torch.device(device)
        if device == self.device:
            return self
        if device not in self._copies:
            blocks, cells, time, group = self._tables
            copy = object.__new__(Clusters)
            copy._sites, copy._is_even = self._sites, self._is_even
            copy._copies = {self.device: self} if device.type == "meta" else {}
            copy._tables = (
                blocks.to(device),
                cells.to(device),
                None if time is None else time.to(device),
                None if group is None else group.to(device),
            )
            self._copies[device] = copy
        return self._copies[device]

    @property
    def num_sites(self) -> int:
        return self._sites

    @property
    def is_even(self) -> bool:
        return self._is_even

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._tables[0]

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self._tables[1]

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return self._tables[2]

    @property
    def group(self) -> Int[Tensor, " B"] | None:
        return self._tables[3]

    def coarsen(self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1) -> "Clusters":
        """Runs of `factor` blocks, cell after cell, become blocks; runs of `cell` of those, cells.

        No run crosses from one group to another. A site of the result has the latest time in it.
        """
        factor, cell = arguments.one_factor("factor", factor), arguments.one_factor("cell", cell)
        group = self.group
        if group is None:
            group = torch.zeros(self.num_blocks, dtype=torch.int64, device=self.device)
        order = self.cells[self.cells >= 0]
        order = order[group[order].argsort(stable=True)]
        runs, run_group = _runs(group[order], factor)
        block_of_site = torch.empty_like(runs)
        block_of_site[order] = runs
        cell_of_block, _ = _runs(run_group, cell)
        time = None
        if self.time is not None:
            times = self.time[self.blocks.clamp(min=0)].masked_fill(self.blocks < 0, _EARLIEST)
            time = times.amax(dim=1)
        return Clusters(
            block_of_site, cell_of_block, time, None if self.group is None else run_group
        )


_EARLIEST = torch.iinfo(torch.int64).min


def _members(row_of_member: Int[Tensor, " members"]) -> Int[Tensor, "rows longest"]:
    """The members of each row in ascending order, -1 after the last."""
    row = row_of_member.long()
    counts = row.bincount()
    order = row.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(row), device=row.device) - starts[row[order]]
    table = row.new_full((len(counts), int(counts.max())), -1)
    table[row[order], place] = order
    return table


def _runs(group: Int[Tensor, " m"], length: int) -> tuple[Int[Tensor, " m"], Int[Tensor, " runs"]]:
    """Number runs of `length` members, none across a change of group; and the group of each run."""
    position = torch.arange(len(group), device=group.device)
    new_group = torch.ones_like(group, dtype=torch.bool)
    new_group[1:] = group[1:] != group[:-1]
    start = torch.where(new_group, position, 0).cummax(0).values
    begins = (position - start) % length == 0
    return begins.long().cumsum(0) - 1, group[begins]


def _check_vectors(
    block_of_site: Tensor, cell_of_block: Tensor, time: Tensor | None, group: Tensor | None
) -> None:
    num_blocks = _check_numbering("block_of_site", block_of_site)
    _check_numbering("cell_of_block", cell_of_block)
    if len(cell_of_block) != num_blocks:
        raise ValueError(
            f"cell_of_block has {len(cell_of_block)} entries but block_of_site names "
            f"{num_blocks} blocks"
        )
    for name, vector, _check_length, of in (
        ("time", time, len(block_of_site), "sites"),
        ("group", group, num_blocks, "blocks"),
    ):
        if vector is None:
            continue
        arguments.int_vector(name, vector)
        if len(vector) != _check_length:
            raise ValueError(f"{name} has {len(vector)} entries but there are {_check_length} {of}")
    given = [x for x in (block_of_site, cell_of_block, time, group) if x is not None]
    if len({x.device for x in given}) > 1:
        raise ValueError(
            "block_of_site, cell_of_block, time and group must be on one device; got "
            f"{arguments.listed(x.device for x in given)}"
        )
    if group is not None:
        first = torch.zeros(int(cell_of_block.max()) + 1, dtype=torch.int64, device=group.device)
        first[cell_of_block.long()] = group.long()
        if bool((first[cell_of_block.long()] != group).any()):
            raise ValueError("a cell has blocks of different groups; it must lie within one group")


def _check_numbering(name: str, vector: Any) -> int:
    """How many numbers a vector uses; they must be 0, 1, ... without gaps."""
    arguments.int_vector(name, vector)
    if len(vector) == 0:
        raise ValueError(f"{name} is empty; a structure needs at least one site")
    used = vector.unique()
    if int(used[0]) != 0 or int(used[-1]) != len(used) - 1:
        raise ValueError(f"{name} must use the numbers 0, 1, 2, ... without gaps")
    return len(used)
