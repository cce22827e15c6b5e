"""Sites in a row, cut into runs: the plainest space, with times of one's own."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import cached


class Line(SpatialStructure):
    """Sites in their order, every `block` of them a block and a cell of its own.

    Args:
        count: How many sites.
        block: Sites of a block; the last has what is left.
        time: (count,) int64, the time of each site, in any order; None for no time.
        device: Where the tables are.
    """

    def __init__(
        self,
        count: int,
        block: int,
        time: Int[Tensor, " n"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.count, self.block = count, block
        self._time, self._on = time, torch.device(device)

    def __repr__(self) -> str:
        return f"Line({self.count}, {self.block})"

    @cached
    def blocks(self) -> Int[Tensor, "B R"]:
        sites = torch.arange(self.count, device=self._on)
        return F.pad(sites, (0, self._spare), value=-1).view(-1, self.block)

    @cached
    def cells(self) -> Int[Tensor, "C 1"]:
        return torch.arange(self.num_blocks, device=self._on)[:, None]

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return self._time

    @property
    def device(self) -> torch.device:
        return self._on

    @property
    def num_sites(self) -> int:
        return self.count

    @property
    def num_blocks(self) -> int:
        return -(-self.count // self.block)

    @property
    def num_cells(self) -> int:
        return self.num_blocks

    @property
    def is_even(self) -> bool:
        return self._spare == 0

    @property
    def _spare(self) -> int:
        """Empty places of the last block."""
        return -self.count % self.block

    def _move(self, device: torch.device) -> "Line":
        time = None if self._time is None else self._time.to(device)
        return Line(self.count, self.block, time, device)

    def coarsen(self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1) -> "Line":
        """Make the line of the blocks, each of the latest time in it; `cell` has to be 1."""
        if arguments.one_factor("cell", cell) != 1:
            raise NotImplementedError(f"a cell of a Line is one block; got cell={cell}")
        time = None if self._time is None else self.block_span[1]
        return Line(self.num_blocks, arguments.one_factor("factor", factor), time, self._on)

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        if self._spare:  # a pad of nothing would copy
            x = F.pad(x, (0, 0, 0, self._spare))
        return x.unflatten(-2, (-1, self.block))

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        return self.by_block(x)

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        return parts.flatten(-3, -2).narrow(-2, 0, self.count)
