"""Which sites are read where a block is selected: some of its own, or more than its own."""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure


class Sampling(abc.ABC):
    """A way to upsample the selected blocks, given to `gpa` and `attend` as `read`.

    Source: line 15 of Algorithm 1 of Jetchev et al. 2021. The paper fills the finer grid densely
    and notes that other strategies are possible.
    """

    def sites(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        """List the sites that are read where a block is selected, -1 for an empty place; once.

        A site may stand in several rows or in none.
        """
        return structure.kept_with(structure, repr(self), lambda own, _: self._list(own))

    @abc.abstractmethod
    def _list(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        """Make the table that `sites` keeps under the name that `repr` gives."""


@dataclass(frozen=True)
class Strided(Sampling):
    """Read every `step`-th site of a block, on a grid along every axis.

    Raises:
        ValueError: `step` is below 1.
    """

    step: int

    def __post_init__(self) -> None:
        arguments.positive_count("step", self.step)

    def _list(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        return structure.strided_blocks(self.step)


@dataclass(frozen=True)
class Jittered(Sampling):
    """Read `count` sites of each block, drawn at random once; all where it has fewer.

    Raises:
        ValueError: `count` is below 1.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.positive_count("count", self.count)

    def _list(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        blocks = structure.blocks
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(blocks.shape, generator=generator).to(blocks.device)
        order = draw.masked_fill(blocks < 0, 2).argsort(dim=1)[:, : self.count]
        return blocks.gather(1, order).sort(dim=1, descending=True).values


@dataclass(frozen=True)
class Halo(Sampling):
    """Read a block and the sites within `reach` of it along every axis of a grid.

    Where two selected blocks have sites in common, those are read, and count, twice.

    Raises:
        ValueError: The reach does not fit the grid.
        NotImplementedError: The structure does not know what is near.
    """

    reach: int | tuple[int, ...]

    def _list(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        return structure.halo_blocks(self.reach)
