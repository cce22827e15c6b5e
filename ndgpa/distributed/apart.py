"""A backend whose keys are on many ranks: own blocks and fetched blocks, merged by log-sum-exp.

It has the signature of every backend, and runs any of them: once for the blocks of this rank, while
the others travel, and once for those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.attention import Backend
from ndgpa.distributed.exchange import Exchange, per_tile, plan_exchange
from ndgpa.distributed.fetched import Fetched, Repeated
from ndgpa.distributed.part import Part
from ndgpa.problem import Selection
from ndgpa.selection.slots import without_empty_columns
from ndgpa.structures.tables import take_sites


@dataclass(frozen=True)
class Apart:
    """Attend to blocks on many ranks.

    Args:
        run: The backend for the two parts.
        merge: Merges them, as `ndgpa.attention.far_merge.merged`.
        read: (B, S), the sites that are read where a block of the whole is selected; None means its
            own.
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
        units = partial(_units, keys=key_structure, key_sites=key_sites)
        rows = exchange.send(units(key), units(value))
        bias = None if key_bias is None else exchange.send(units(key_bias[..., None]))
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
        fetched = Fetched.of(
            rows.arrive(),
            None if bias is None else bias.arrive(),
            exchange.block,
            key_structure.whole,
            self.read,
            key.shape[3],
        )
        asking = Repeated(structure, len(blocks) * key_heads)
        tall = {"b": len(blocks), "k": key_heads}
        groups = blocks.shape[1] // key_heads
        wanted = _only(exchange.slot, selection.bias)
        far, far_lse = self.run(
            rearrange(query, "b (k g) n d -> 1 g (b k n) d", k=key_heads),
            fetched.key,
            fetched.value,
            _tall(wanted, groups),
            asking,
            fetched.structure,
            key_bias=fetched.bias,
            **options,
        )
        far = rearrange(far, "1 g (b k n) d -> b (k g) n d", **tall)
        far_lse = rearrange(far_lse, "1 g (b k n) -> b (k g) n", **tall)
        out, lse = self.merge(near, near_lse, far.to(far_lse.dtype), far_lse, causal)
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
    block, slot, asked, sent, received = found
    return Exchange(block, slot, asked, sent, received, group)


def _units(
    x: Float[Tensor, "b hk n_k w"], keys: Part, key_sites: Int[Tensor, "B S"] | None
) -> Float[Tensor, "u Sw"]:
    """Make a row of each block of each batch entry and key head."""
    by_block = keys.by_block(x) if key_sites is None else take_sites(x, key_sites)
    return by_block.flatten(3).flatten(0, 2)


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


def _tall(selection: Selection, groups: int) -> Selection:
    """Let each batch entry and key head have cells of its own."""
    form = "b (k g) c s -> 1 g (b k c) s"
    bias = None if selection.bias is None else rearrange(selection.bias, form, g=groups)
    return Selection(rearrange(selection.blocks, form, g=groups), bias)
