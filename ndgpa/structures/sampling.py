"""Which sites stand for a block in Phase 2: all of them, some of them, or more than them."""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure, table


class Sampling(abc.ABC):
    """A way to upsample the selected blocks: line 15 of Algorithm 1 of Jetchev et al. 2021.

    The paper fills the finer grid densely and notes that other strategies are possible.
    """

    @abc.abstractmethod
    def table(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        """The sites that are read where a block is selected, -1 for an empty place."""

    def __call__(self, structure: SpatialStructure) -> "Sampled":
        """The structure to attend over, as `key_structure`; made once."""
        sites = structure.kept_with(structure, repr(self), lambda own, _: self.table(own))
        return Sampled(structure, sites)


@dataclass(frozen=True)
class Strided(Sampling):
    """Every `step`-th site of a block, on a grid along every axis.

    Raises:
        ValueError: `step` is below 1.
    """

    step: int

    def __post_init__(self) -> None:
        arguments.positive_count("step", self.step)

    def table(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        return structure.strided_blocks(self.step)


@dataclass(frozen=True)
class Jittered(Sampling):
    """`count` sites of each block, drawn at random once for a structure; all where it has fewer.

    Raises:
        ValueError: `count` is below 1.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.positive_count("count", self.count)

    def table(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        blocks = structure.blocks
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(blocks.shape, generator=generator).to(blocks.device)
        order = draw.masked_fill(blocks < 0, 2).argsort(dim=1)[:, : self.count]
        return blocks.gather(1, order).sort(dim=1, descending=True).values


@dataclass(frozen=True)
class Halo(Sampling):
    """A block and the sites within `reach` of it along every axis of a grid.

    Where two selected blocks have sites in common, those are read, and count, twice.

    Raises:
        ValueError: The reach does not fit the grid.
        NotImplementedError: The structure does not know what is near.
    """

    reach: int | tuple[int, ...]

    def table(self, structure: SpatialStructure) -> Int[Tensor, "B S"]:
        return structure.halo_blocks(self.reach)


class Sampled(SpatialStructure):
    """A structure whose blocks read other sites than their own; for attending to, no more."""

    def __init__(self, structure: SpatialStructure, sites: Int[Tensor, "B S"]) -> None:
        self.structure, self.sites = structure, sites

    @property
    def blocks(self) -> Int[Tensor, "B S"]:
        return self.sites

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self.structure.cells

    @property
    def is_partition(self) -> bool:
        """No: a site may be in no block, or in several."""
        return False

    @table
    def block_of_site(self) -> Int[Tensor, " n"]:
        """There is none: a site may be in no block, or in several."""
        raise NotImplementedError(_only_read("block_of_site"))

    @table
    def _place_in_cells(self) -> Int[Tensor, " n"]:
        raise NotImplementedError(_only_read("compose"))

    @property
    def num_sites(self) -> int:
        return self.structure.num_sites

    @property
    def device(self) -> torch.device:
        return self.structure.device

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return self.structure.time

    @property
    def group(self) -> Int[Tensor, " B"] | None:
        return self.structure.group

    def to(self, device: torch.device | str) -> "Sampled":
        if torch.device(device) == self.device:
            return self
        return Sampled(self.structure.to(device), self.sites.to(device))

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        return self.structure.coarsen(factor, cell)


def _only_read(name: str) -> str:
    return (
        f"a sampled structure has no {name}, as a site may be in several blocks or in none; it "
        "can only be passed as key_structure"
    )
