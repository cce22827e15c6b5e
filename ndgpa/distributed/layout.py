"""Which rank holds which cells: runs of cells of about as many sites each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.distributed.placement import InOrder, Placement, check_placement
from ndgpa.structures import SpatialStructure
from ndgpa.structures.tables import cached


@dataclass(frozen=True, eq=False)
class Layout:
    """The cells of each rank, and with them its blocks and sites.

    Args:
        structure: The whole space.
        order: (cells,), all cells, those of rank 0 first.
        starts: Where the run of each rank begins in `order`, and the end of the last one.
    """

    structure: SpatialStructure
    order: Int[Tensor, " C"]
    starts: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """How many ranks share the space."""
        return len(self.starts) - 1

    def cells_of(self, rank: int) -> Int[Tensor, " c"]:
        """List the cells of a rank."""
        return self.order[self.starts[rank] : self.starts[rank + 1]]

    def blocks_of(self, rank: int) -> Int[Tensor, " b"]:
        """List the blocks of a rank, cell after cell."""
        blocks = self.structure.cells[self.cells_of(rank)]
        return blocks[blocks >= 0]

    @cached
    def blocks_per_rank(self) -> tuple[int, ...]:
        """How many blocks each rank holds."""
        return tuple(len(self.blocks_of(rank)) for rank in range(self.ranks))

    @cached
    def sites_per_rank(self) -> tuple[int, ...]:
        """How many sites each rank holds."""
        sizes = self.structure.block_sizes
        return tuple(int(sizes[self.blocks_of(rank)].sum()) for rank in range(self.ranks))

    @cached
    def rank_of_block(self) -> Int[Tensor, " B"]:
        """The rank that holds each block."""
        return self._by_block([torch.full((b,), r) for r, b in enumerate(self.blocks_per_rank)])

    @cached
    def place_of_block(self) -> Int[Tensor, " B"]:
        """The number of each block among those of its rank."""
        return self._by_block([torch.arange(b) for b in self.blocks_per_rank])

    @cached
    def blocks_in_order(self) -> Int[Tensor, " B"]:
        """All blocks, those of rank 0 first."""
        return torch.cat([self.blocks_of(rank) for rank in range(self.ranks)])

    def _by_block(self, by_rank: Sequence[Tensor]) -> Tensor:
        """Put in the order of the blocks what is given rank by rank."""
        found = torch.empty_like(self.blocks_in_order)
        found[self.blocks_in_order] = torch.cat([*by_rank]).to(found)
        return found


def lay_out(structure: SpatialStructure, ranks: int, placement: Placement | None = None) -> Layout:
    """Give each rank a run of cells, all of about as many sites.

    Args:
        ranks: How many; a rank may get no cell where there are fewer cells.
        placement: The order of the cells, of which each rank gets a run; None means their own.

    Raises:
        TypeError, ValueError: `ranks` is no positive count, or `placement` no placement.
    """
    arguments.positive_count("ranks", ranks)
    placement = InOrder() if placement is None else placement
    check_placement(placement)
    order = placement.order(structure).to(structure.device)
    blocks = structure.cells[order]
    sizes = structure.block_sizes[blocks.clamp(min=0)].masked_fill(blocks < 0, 0).sum(dim=1)
    middle = sizes.cumsum(0).double() - sizes / 2
    ends = torch.arange(1, ranks, device=order.device) * (structure.num_sites / ranks)
    inner = torch.searchsorted(middle, ends).tolist()
    return Layout(structure, order, (0, *inner, structure.num_cells))
