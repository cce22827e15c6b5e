"""Which foreign blocks a rank wants, and the exchange of exactly those.

What is exchanged is a unit: one block of one batch entry and one key head. So heads that select for
themselves fetch only what they selected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.distributed.collectives import all_to_all, arrived, land, launch, pick
from ndgpa.distributed.layout import Layout


@dataclass(frozen=True)
class Wants:
    """The units that some cells want of other ranks.

    Args:
        rank: (F,) which rank holds each unit, ascending.
        unit: (F,) its number there: (batch * key heads + head) * blocks there + block.
        block: (F,) the number of its block in the whole.
        slot: (b, t, C, K) int32: for each slot of a selection, which of the F units it names; -1
            for an empty slot and for a block of this rank.
    """

    rank: Int[Tensor, " F"]
    unit: Int[Tensor, " F"]
    block: Int[Tensor, " F"]
    slot: Int[Tensor, "b t C K"]


def wants(
    blocks: Int[Tensor, "b t C K"],
    key_heads: int,
    rank: int,
    rank_of_block: Int[Tensor, " B"],
    place_of_block: Int[Tensor, " B"],
    blocks_in_order: Int[Tensor, " B"],
    counts: Sequence[int],
) -> Wants:
    """List the units that the cells of a rank want of other ranks, each once.

    Args:
        blocks: What they selected, -1 for an empty slot; t is a multiple of the key heads.
        rank_of_block, place_of_block, blocks_in_order, counts: As in `Layout`.
    """
    batch, tiles = blocks.shape[:2]
    ids = blocks.clamp(min=0).long()
    of_rank = torch.tensor([*counts], device=blocks.device)
    first = of_rank.cumsum(0) - of_rank  # the first block of each rank in their order
    heads = torch.arange(tiles, device=blocks.device) // (tiles // key_heads)
    heads = heads + key_heads * torch.arange(batch, device=blocks.device)[:, None]
    holder = rank_of_block[ids]
    unit = heads[..., None, None] * of_rank[holder] + place_of_block[ids]
    code = first[holder] * (batch * key_heads) + unit  # each unit of the world its own, by rank
    code = code.masked_fill((blocks < 0) | (holder == rank), -1)
    found, slot = code.unique(return_inverse=True)
    nothing = int((found < 0).sum())
    found, slot = found[nothing:], slot - nothing
    holder = torch.searchsorted(first * (batch * key_heads), found, right=True) - 1
    holder = _last_of_equals(holder, of_rank)
    unit = found - first[holder] * (batch * key_heads)
    block = blocks_in_order[first[holder] + unit % of_rank[holder].clamp(min=1)]
    return Wants(holder, unit, block, slot.int())


def _last_of_equals(holder: Tensor, of_rank: Tensor) -> Tensor:
    """Pass over ranks without blocks, which begin where the next one begins."""
    there = torch.arange(len(of_rank), device=holder.device).masked_fill(of_rank == 0, 0)
    return there.cummax(0).values[holder]


def wanted_by(
    blocks: Int[Tensor, "b hs C K"], heads: int, key_heads: int, layout: Layout, rank: int
) -> Wants:
    """List what some cells of a rank want, given what they selected; nothing is sent."""
    return wants(
        per_tile(blocks, heads, key_heads),
        key_heads,
        rank,
        layout.rank_of_block,
        layout.place_of_block,
        layout.blocks_in_order,
        layout.blocks_per_rank,
    )


def per_tile(blocks: Tensor, heads: int, key_heads: int) -> Tensor:
    """Give each key head, or each head where heads select for themselves, its selection."""
    return blocks.expand(-1, heads if blocks.shape[1] == heads else key_heads, -1, -1)


@torch.library.custom_op("ndgpa::plan_exchange", mutates_args=())
def plan_exchange(
    blocks: Tensor,  # (b, t, C, K)
    key_heads: int,
    rank: int,
    rank_of_block: Tensor,  # (B,)
    place_of_block: Tensor,  # (B,)
    blocks_in_order: Tensor,  # (B,)
    counts: Sequence[int],
    group: str,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tell the other ranks which units this one wants, and hear which they want.

    Returns:
        block (F,) of each unit that will come, one of -1 if none will; the slots as in `Wants`;
        asked (S,), the units to send, by rank; and how many units go to each rank and come from
        each, on the CPU.
    """
    ranks = len(counts)
    want = wants(blocks, key_heads, rank, rank_of_block, place_of_block, blocks_in_order, counts)
    received = want.rank.bincount(minlength=ranks)
    sent = arrived(all_to_all(received, [1] * ranks, [1] * ranks, group), group).cpu()
    received = received.cpu()
    asked = arrived(all_to_all(want.unit, sent.tolist(), received.tolist(), group), group)
    block = want.block if len(want.block) else want.block.new_full((1,), -1)
    return block, want.slot, asked, sent, received


@plan_exchange.register_fake
def _(
    blocks: Tensor,
    key_heads: int,
    rank: int,
    rank_of_block: Tensor,
    place_of_block: Tensor,
    blocks_in_order: Tensor,
    counts: Sequence[int],
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    new = torch.library.get_ctx().new_dynamic_size
    on_cpu = torch.empty(len(counts), dtype=torch.int64)
    return (
        blocks.new_empty(new(min=1), dtype=torch.int64),
        torch.empty_like(blocks, dtype=torch.int32, memory_format=torch.contiguous_format),
        blocks.new_empty(new(), dtype=torch.int64),
        on_cpu,
        torch.empty_like(on_cpu),
    )


@dataclass(frozen=True)
class Exchange:
    """Who gets which units: what `plan_exchange` found."""

    block: Int[Tensor, " F"]
    slot: Int[Tensor, "b t C K"]
    asked: Int[Tensor, " S"]
    sent: Int[Tensor, " ranks"]
    received: Int[Tensor, " ranks"]
    group: str

    def send(self, *units: Float[Tensor, "u _"]) -> "Sent":
        """Begin to send what the other ranks asked for, of all units of this rank.

        Args:
            units: What is sent of each unit; one row is made of it.
        """
        rows = torch.cat([pick(x, self.asked, self.sent) for x in units], dim=1)
        move = (self.asked, self.block, self.sent, self.received, self.group, False)
        # Neither a compiled graph nor a search for NaN leaves alone what has not arrived.
        wait = torch.compiler.is_compiling() or torch.is_anomaly_enabled()
        return Sent(launch(rows, *move, wait), (*move, wait))


@dataclass(frozen=True)
class Sent:
    """Rows on their way."""

    pending: Tensor
    move: tuple[Any, ...]

    def arrive(self) -> Float[Tensor, "F w"]:
        """Wait for the units that this rank wanted."""
        return land(self.pending, *self.move)
