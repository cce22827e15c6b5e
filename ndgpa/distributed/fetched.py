"""Blocks that came from other ranks, and the structures by which a backend reads them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.structures import SpatialStructure
from ndgpa.structures.tables import lookup


@dataclass(frozen=True)
class Fetched:
    """The units of other ranks, as one table of keys for all batch entries and heads."""

    key: Float[Tensor, "1 1 m d"]
    value: Float[Tensor, "1 1 m dv"]
    bias: Float[Tensor, "1 1 m"] | None
    structure: "Units"

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "F w"],
        bias: Float[Tensor, "F S"] | None,
        blocks: Int[Tensor, " F"],
        whole: SpatialStructure,
        read: Int[Tensor, "B S"] | None,
        features: int,
    ) -> "Fetched":
        """Unpack the rows of units.

        Args:
            rows: The keys of all places of a unit, then the values.
            bias: Of each place; None is zero.
            blocks: The block of each unit.
            read: As in `Apart`.
            features: Of a key.
        """
        sites = lookup(whole.blocks if read is None else read, blocks)  # -1 for an empty place
        count, places = sites.shape
        key, value = rows.tensor_split([places * features], dim=1)
        if read is not None or not whole.is_even:
            added = rows.new_zeros(sites.shape, dtype=wide(rows)) if bias is None else bias
            bias = added.masked_fill(sites < 0, -torch.inf)
        time = None if whole.time is None else whole.time[sites.clamp(min=0)].flatten()
        key, value = (x.unflatten(1, (places, -1)).flatten(0, 1)[None, None] for x in (key, value))
        bias = None if bias is None else bias.flatten()[None, None]
        return cls(key, value, bias, Units(places, count, time, rows.device))


class Units(SpatialStructure):
    """So many blocks of so many places, one after another: keys as they came from other ranks."""

    def __init__(
        self, places: int, count: int, time: Int[Tensor, " n"] | None, device: torch.device
    ) -> None:
        self._places, self._count, self._time, self._on = places, count, time, device

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        numbers = torch.arange(self._count * self._places, device=self._on)
        return numbers.view(self._count, self._places)

    @property
    def cells(self) -> Int[Tensor, "C 1"]:
        return torch.arange(self._count, device=self._on)[:, None]

    @property
    def num_sites(self) -> int:
        return self._count * self._places

    @property
    def num_blocks(self) -> int:
        return self._count

    @property
    def is_even(self) -> bool:
        return True

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return self._time

    def by_block(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch B R d"]:
        return x.unflatten(-2, (self._count, self._places))

    def _move(self, device: torch.device) -> "Units":
        raise NotImplementedError("units stay where they arrived")

    def coarsen(self, factor: Any, cell: Any = 1) -> SpatialStructure:
        raise NotImplementedError("units are not coarsened")


class Repeated(SpatialStructure):
    """A part, several times over: the cells of each batch entry and key head."""

    def __init__(self, part: SpatialStructure, times: int) -> None:
        self._part, self._times = part, times

    def _again(self, table: Tensor, length: int) -> Tensor:
        steps = length * torch.arange(self._times, device=table.device)[:, None, None]
        return (table + steps).masked_fill(table < 0, -1).flatten(0, 1)

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._again(self._part.blocks, self._part.num_sites)

    @property
    def cells(self) -> Int[Tensor, "C P"]:
        return self._again(self._part.cells, self._part.num_blocks)

    @property
    def num_sites(self) -> int:
        return self._times * self._part.num_sites

    @property
    def num_cells(self) -> int:
        return self._times * self._part.num_cells

    @property
    def is_even(self) -> bool:
        return self._part.is_even

    @property
    def device(self) -> torch.device:
        return self._part.device

    @property
    def time(self) -> Int[Tensor, " n"] | None:
        return None if self._part.time is None else self._part.time.repeat(self._times)

    @property
    def cell_sites(self) -> Int[Tensor, "C PR"]:
        return self._again(self._part.cell_sites, self._part.num_sites)

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        return self._part.partition(x.unflatten(-2, (self._times, -1))).flatten(-4, -3)

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        return self._part.compose(parts.unflatten(-3, (self._times, -1))).flatten(-3, -2)

    def _move(self, device: torch.device) -> "Repeated":
        return Repeated(self._part.to(device), self._times)

    def coarsen(self, factor: Any, cell: Any = 1) -> SpatialStructure:
        raise NotImplementedError("a repeated part is not coarsened")
