"""A backend whose keys are on many ranks: own blocks and fetched blocks, merged by log-sum-exp.

It has the signature of every backend, and runs any of them: once for the blocks of this rank, while
the others travel, and once for those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa.attention import Backend
from ndgpa.distributed.exchange import Exchange, per_tile, plan_exchange
from ndgpa.distributed.part import Part
from ndgpa.problem import Selection
from ndgpa.selection.slots import without_empty_columns
from ndgpa.structures import SpatialStructure
from ndgpa.structures.tables import lookup, take_sites


@dataclass(frozen=True)
class Apart:
    """Attend to blocks on many ranks.

    Args:
        run: The backend for the two parts.
        merge: Merges them, as `ndgpa.attention.far_merge.merged`.
        read: (B, S), the sites that are read where a block of the whole is selected, or None for the
            blocks, as `key_sites` of the whole.
        is_idle: Whether this rank has no cell, so that nothing is fetched for it.
        after: What must be done before anything is sent.
    """

    run: Backend
    merge: Callable[..., tuple[Tensor, Tensor]]
    read: Int[Tensor, "B S"] | None
    is_idle: bool
    after: Tensor

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        selection: Selection,
        structure: Part,
        key_structure: Part,
        *,
        scale: float,
        key_bias: Float[Tensor, "b hk n_k"] | None = None,
        key_sites: Int[Tensor, "B S"] | None = None,
        causal: bool = False,
    ) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
        """Attend from the sites of this rank; arguments as of the reference.

        Structures, features and `key_sites` are those of this rank, the selection names blocks of
        the whole.
        """
        heads, key_heads = query.shape[1], key.shape[1]
        blocks = per_tile(selection.blocks, heads, key_heads)
        if self.is_idle:
            blocks = torch.full_like(blocks, -1)
        options = {"scale": scale, "causal": causal}
        exchange = _plan(blocks, key_heads, key_structure, self.after)
        coming = _send(exchange, key, value, key_bias, key_structure, key_sites)
        own = _only(own_blocks(blocks, key_structure), selection.bias)
        near, near_lse = self.run(
            query,
            key,
            value,
            own,
            structure,
            key_structure,
            key_bias=key_bias,
            key_sites=key_sites,
            **options,
        )
        fetched = Fetched.of(coming, exchange, key_structure, self.read, key, value)
        asking = Repeated(structure, len(blocks) * key_heads)
        tall = {"b": len(blocks), "k": key_heads}
        groups = blocks.shape[1] // key_heads
        wanted = _only(exchange.slot, selection.bias)
        far, far_lse = self.run(
            rearrange(query, "b (k g) n d -> 1 g (b k n) d", k=key_heads),
            fetched.key,
            fetched.value,
            Selection(*(_tall(x, groups) for x in (wanted.blocks, wanted.bias))),
            asking,
            fetched.structure,
            key_bias=fetched.bias,
            **options,
        )
        far = rearrange(far, "1 g (b k n) d -> b (k g) n d", **tall)
        far_lse = rearrange(far_lse, "1 g (b k n) -> b (k g) n", **tall)
        given = near, near_lse, query, None, far.to(far_lse.dtype), far_lse, None, scale, causal
        out, lse = self.merge(*given)
        return out.to(value.dtype), lse


def _plan(blocks: Tensor, key_heads: int, keys: Part, after: Tensor) -> Exchange:
    layout, group = keys.layout, keys.group_name
    found = plan_exchange(
        blocks,
        key_heads,
        keys.rank,
        layout.rank_of_block,
        layout.place_of_block,
        layout.blocks_in_order,
        layout.blocks_per_rank,
        group,
        after,
    )
    return Exchange(*found, group)


def _send(
    exchange: Exchange,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    keys: Part,
    key_sites: Tensor | None,
) -> Any:
    """Begin to send keys and values, and biases where there are any, as rows of units."""

    def units(x: Tensor) -> Tensor:  # (b, hk, n_k, w) -> (units, S w)
        by_block = keys.by_block(x) if key_sites is None else take_sites(x, key_sites)
        return by_block.flatten(3).flatten(0, 2)

    rows = torch.cat([units(key), units(value)], dim=1)
    bias = None if key_bias is None else exchange.send(units(key_bias[..., None]))
    return exchange.send(rows), bias


def own_blocks(blocks: Int[Tensor, "b t C K"], keys: Part) -> Int[Tensor, "b t C K"]:
    """Number the blocks of this rank as it does; -1 for those of others."""
    layout, ids = keys.layout, blocks.clamp(min=0).long()
    other = (blocks < 0) | (layout.rank_of_block[ids] != keys.rank)
    return layout.place_of_block[ids].masked_fill(other, -1).int()


def _only(blocks: Int[Tensor, "b t C K"], bias: Tensor | None) -> Selection:
    """Drop the empty slots as far as the fullest row allows."""
    empty = blocks < 0
    order = empty.byte().sort(dim=-1, stable=True).indices
    blocks = without_empty_columns(blocks.gather(-1, order))
    if bias is None:
        return Selection(blocks)
    bias = bias.expand(-1, blocks.shape[1], -1, -1).gather(-1, order)
    return Selection(blocks, bias[..., : blocks.shape[-1]])


def _tall(x: Tensor | None, groups: int) -> Tensor | None:
    """Let each batch entry and key head have cells of its own."""
    return None if x is None else rearrange(x, "b (k g) c s -> 1 g (b k c) s", g=groups)


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
        coming: Any,
        exchange: Exchange,
        keys: Part,
        read: Tensor | None,
        key: Tensor,
        value: Tensor,
    ) -> "Fetched":
        """Wait for the units and unpack them."""
        rows, bias = (None if x is None else x.arrive() for x in coming)
        whole = keys.whole
        table = whole.blocks if read is None else read
        places = table.shape[1]
        key, value = (
            x.unflatten(1, (places, -1)).flatten(0, 1)[None, None]
            for x in rows.split([places * key.shape[3], places * value.shape[3]], dim=1)
        )
        sites = lookup(table, exchange.block)  # (F, S), -1 for an empty place
        bias = None if bias is None else bias.flatten()[None, None]
        if read is not None or not whole.is_even:
            bias = rows.new_zeros((1, 1, sites.numel()), dtype=_wide(key)) if bias is None else bias
            bias = bias.masked_fill((sites < 0).flatten(), -torch.inf)
        time = None if whole.time is None else whole.time[sites.clamp(min=0)].flatten()
        return cls(key, value, bias, Units(places, len(sites), time, rows.device))


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
    def cell_sites(self) -> Int[Tensor, "C PR"]:  # type: ignore[override]
        return self._again(self._part.cell_sites, self._part.num_sites)

    def partition(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch C PR d"]:
        return self._part.partition(x.unflatten(-2, (self._times, -1))).flatten(-4, -3)

    def compose(self, parts: Float[Tensor, "*batch C PR d"]) -> Float[Tensor, "*batch n d"]:
        return self._part.compose(parts.unflatten(-3, (self._times, -1))).flatten(-3, -2)

    def _move(self, device: torch.device) -> "Repeated":
        return Repeated(self._part.to(device), self._times)

    def coarsen(self, factor: Any, cell: Any = 1) -> SpatialStructure:
        raise NotImplementedError("a repeated part is not coarsened")


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
