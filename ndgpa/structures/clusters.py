"""Any partition, given as two int vectors."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import members_of_rows


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
        self._blocks, self._cells = members_of_rows(block_of_site), members_of_rows(cell_of_block)
        self._time = None if time is None else time.long()
        self._group = None if group is None else group.long()
        # Known from the start: a compiled graph cannot ask for it, and a GPU would be waited for.
        self._is_even = all(bool((x >= 0).all()) for x in (self._blocks, self._cells))

    def __repr__(self) -> str:
        return (
            f"Clusters({self.num_sites} sites, {self.num_blocks} blocks of at most "
            f"{self.sites_per_block}, {self.num_cells} cells of at most {self.blocks_per_cell})"
        )

    def _move(self, device: torch.device) -> "Clusters":
        moved = object.__new__(Clusters)
        moved._sites, moved._is_even = self._sites, self._is_even
        moved._blocks, moved._cells = self._blocks.to(device), self._cells.to(device)
        moved._time = None if self._time is None else self._time.to(device)
        moved._group = None if self._group is None else self._group.to(device)
        return moved

    @property
    def num_sites(self) -> int:
        return self._sites

    @property
    def is_even(self) -> bool:
        return self._is_even

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._blocks

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self._cells

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return self._time

    @property
    def group(self) -> Int[Tensor, " B"] | None:
        return self._group

    def coarsen(self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1) -> "Clusters":
        """Join runs of `factor` blocks, cell after cell, and runs of `cell` of those to cells.

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
        time = None if self.time is None else self.block_span[1]
        return Clusters(
            block_of_site, cell_of_block, time, None if self.group is None else run_group
        )


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
    arguments.int_vector_of("time", time, len(block_of_site), "sites")
    arguments.int_vector_of("group", group, num_blocks, "blocks")
    given = [x for x in (block_of_site, cell_of_block, time, group) if x is not None]
    if len({x.device for x in given}) > 1:
        raise ValueError(
            "block_of_site, cell_of_block, time and group must be on one device; got "
            f"{arguments.listed(x.device for x in given)}"
        )
    if group is not None:
        _check_groups(group, cell_of_block)


def _check_groups(group: Tensor, cell_of_block: Tensor) -> None:
    one = group.new_zeros(int(cell_of_block.max()) + 1)  # a group of each cell
    one[cell_of_block.long()] = group
    if bool((one[cell_of_block.long()] != group).any()):
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
