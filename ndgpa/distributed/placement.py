"""In which order cells are given to ranks: those that read each other should be on one rank."""

import abc
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import Grid
from ndgpa.structures.tables import lookup


class Placement(abc.ABC):
    """An order of the cells of a space; each rank holds a run of it. The same on all ranks."""

    @abc.abstractmethod
    def order(self, structure: SpatialStructure) -> Int[Tensor, " C"]:
        """List all cells, each once."""


@dataclass(frozen=True)
class InOrder(Placement):
    """Keep the order of the cells: on a grid slabs along the first axis.

    `Graph` and `PointCloud` number their cells so that neighbours in number are near.
    """

    def order(self, structure: SpatialStructure) -> Int[Tensor, " C"]:
        return torch.arange(structure.num_cells, device=structure.device)


@dataclass(frozen=True)
class Morton(Placement):
    """Walk a grid along the Z curve, so that the cells of a rank lie together along all axes.

    Source: Morton 1966, "A computer oriented geodetic data base".

    Raises:
        TypeError: The structure is not a Grid.
    """

    def order(self, structure: SpatialStructure) -> Int[Tensor, " C"]:
        return _interleaved(_coordinates("Morton", structure)).argsort(stable=True)


@dataclass(frozen=True)
class Hilbert(Placement):
    """Walk a grid along the Hilbert curve: as `Morton`, without its jumps.

    Source: Skilling 2004, "Programming the Hilbert curve".

    Raises:
        TypeError: The structure is not a Grid.
    """

    def order(self, structure: SpatialStructure) -> Int[Tensor, " C"]:
        axes = _coordinates("Hilbert", structure)
        return _interleaved(_transposed(axes)).argsort(stable=True)


@dataclass(frozen=True, eq=False)
class ByTraffic(Placement):
    """Put cells together that read each other, as a selection or the edges of a graph tell.

    The cells are halved again and again along the second eigenvector of the Laplacian of what they
    read of each other, and taken in the order of the halves.

    Source: Pothen, Simon and Liou 1990, "Partitioning sparse matrices with eigenvectors of graphs".

    Args:
        reads: (cells, cells), how much each cell reads of each other one; `traffic_of` makes it.

    Raises:
        TypeError, ValueError: `reads` is not a square table of numbers that are not negative.
    """

    reads: Real[Tensor, "C C"]

    def __post_init__(self) -> None:
        _check_reads(self.reads)

    def order(self, structure: SpatialStructure) -> Int[Tensor, " C"]:
        if len(self.reads) != structure.num_cells:
            raise ValueError(
                f"ByTraffic has {len(self.reads)} cells but structure has {structure.num_cells}"
            )
        weight = self.reads.double().cpu()
        return _halved(weight + weight.T, torch.arange(len(weight)))


def traffic_of(
    blocks: Int[Tensor, "b hs C K"],
    structure: SpatialStructure,
) -> Float[Tensor, "C C"]:
    """Count how many blocks each cell reads of each other cell, over batch and heads.

    Args:
        blocks: Those that each cell of `structure` selected there, -1 for an empty slot.
    """
    cells = lookup(structure.cell_of_block[:, None], blocks.long())[..., 0]
    cells = cells.movedim(2, 0).flatten(1)  # (C, everything)
    counts = torch.zeros(len(cells), structure.num_cells + 1, device=blocks.device)
    ones = torch.ones(cells.shape, device=blocks.device)
    return counts.scatter_add_(1, cells % counts.shape[1], ones)[:, :-1]


def check_placement(placement: Any) -> None:
    if not isinstance(placement, Placement):
        raise TypeError(
            f"placement must be a placement, such as Hilbert(); got {type(placement).__name__}"
        )


def _coordinates(who: str, structure: SpatialStructure) -> Int[Tensor, "C axes"]:
    """Where each cell stands in the grid of cells."""
    if not isinstance(structure, Grid):
        raise TypeError(f"{who} needs a Grid; got {type(structure).__name__}")
    along = [torch.arange(count, device=structure.device) for count in structure.grid_of_cells]
    return torch.cartesian_prod(*along).view(structure.num_cells, -1)


def _bits(axes: Int[Tensor, "C axes"]) -> int:
    return max(1, int(axes.max()).bit_length())


def _interleaved(axes: Int[Tensor, "C axes"]) -> Int[Tensor, " C"]:
    """Take the bits of all axes in turn, the highest first."""
    bits, number = _bits(axes), torch.zeros_like(axes[:, 0])
    for bit in reversed(range(bits)):
        for axis in range(axes.shape[1]):
            number = number << 1 | (axes[:, axis] >> bit & 1)
    return number


def _transposed(axes: Int[Tensor, "C axes"]) -> Int[Tensor, "C axes"]:
    """Turn coordinates into the bits of the place on the Hilbert curve, axis by axis."""
    x, count = list(axes.unbind(dim=1)), axes.shape[1]
    top = 1 << _bits(axes) - 1
    bit = top
    while bit > 1:
        low = bit - 1
        for axis in range(count):
            is_set = (x[axis] & bit) > 0
            swap = (x[0] ^ x[axis]) & low
            flipped, swapped = x[0] ^ low, x[0] ^ swap
            x[axis] = torch.where(is_set, x[axis], x[axis] ^ swap)
            x[0] = torch.where(is_set, flipped, swapped if axis else x[0])
        bit >>= 1
    for axis in range(1, count):
        x[axis] = x[axis] ^ x[axis - 1]
    gray, bit = torch.zeros_like(x[0]), top
    while bit > 1:
        gray = torch.where((x[count - 1] & bit) > 0, gray ^ (bit - 1), gray)
        bit >>= 1
    return torch.stack([axis ^ gray for axis in x], dim=1)


def _halved(weight: Float[Tensor, "C C"], cells: Int[Tensor, " c"]) -> Int[Tensor, " c"]:
    """Order cells by halving them along the Fiedler vector, down to runs of two."""
    if len(cells) <= 2:
        return cells
    own = weight[cells[:, None], cells]
    degree = own.sum(dim=1).clamp(min=1e-12).rsqrt()
    similar = degree[:, None] * own * degree
    vector = torch.linalg.eigh(similar).eigenvectors[:, -2] * degree
    vector = vector * torch.where(vector[vector.abs().argmax()] < 0, -1.0, 1.0)
    first, second = cells[vector.argsort(stable=True)].tensor_split(2)
    return torch.cat([_halved(weight, half.sort().values) for half in (first, second)])


def _check_reads(reads: Any) -> None:
    if not isinstance(reads, Tensor):
        raise TypeError(f"reads must be a tensor; got {type(reads).__name__}")
    if reads.ndim != 2 or reads.shape[0] != reads.shape[1]:
        raise ValueError(f"reads must have shape (cells, cells); got {tuple(reads.shape)}")
    if bool((reads < 0).any()) or not bool(reads.double().isfinite().all()):
        raise ValueError("reads must be finite and not negative")
