"""The `torch` backend: the definition in bounded memory, a few cells at a time.

Keys and values are laid out block by block once; a chunk of cells then gathers whole blocks as
single rows, attends, and is forgotten. The backward recomputes each chunk. Forward and backward are
one opaque operator each, so a compiled graph holds one node for any number of chunks; the second
derivative differentiates the plain formula.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    call,
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    no_tangents,
    wide,
    without_autocast,
)
from ndgpa.attention.cells import Cells, Inputs
from ndgpa.attention.engine import Tables, attend, differentiate
from ndgpa.attention.far_cells import FarCells, block_sums, far_arguments
from ndgpa.attention.scores import Offsets
from ndgpa.problem import Selection, check_block_ids
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import is_full, take_sites


def chunked(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    *,
    scale: float,
    key_bias: Float[Tensor, "b hk n_k"] | None = None,
    key_sites: Int[Tensor, "B S"] | None = None,
    causal: bool = False,
    far: FarCells | None = None,
    offsets: Offsets | None = None,
    softcap: float = 0.0,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """As `reference`, with the memory of one chunk beside the inputs and outputs.

    Heads that share a selection and a key head share one tile of queries. `far` is what each cell
    reads besides.
    """
    no_tangents("torch", query, key, value)
    if key_sites is None:
        read, full, by_block = key_structure.blocks, key_structure.is_even, key_structure.by_block
    else:
        read, full = key_sites, is_full(key_sites)
        by_block = partial(take_sites, sites=read, full=full)
    query_time = key_time = None
    if causal:
        assert structure.time is not None
        assert key_structure.time is not None
        query_time = structure.time[structure.cell_sites.clamp(min=0)]
        key_time = key_structure.time[read.clamp(min=0)]
    if key_bias is None and not full:
        key_bias = key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))
    if key_bias is not None:
        key_bias = by_block(key_bias[..., None])[..., 0].masked_fill(read < 0, -torch.inf)
    out, lse = attend_from_cells(
        structure.partition(query),
        by_block(key),
        by_block(value),
        selection,
        scale,
        key_bias=key_bias,
        query_time=query_time,
        key_time=key_time,
        far=far,
        offsets=None if offsets is None else _by_cell_and_block(offsets, structure, read),
        softcap=softcap,
    )
    return structure.compose(out), structure.compose(lse[..., None])[..., 0]


def _by_cell_and_block(
    offsets: Offsets, structure: SpatialStructure, read: Int[Tensor, "B S"]
) -> Offsets:
    of_query = offsets.of_query[structure.cell_sites.clamp(min=0)]
    return Offsets(offsets.table, of_query, offsets.of_key[read.clamp(min=0)])


def attend_from_cells(
    query: Float[Tensor, "b h C X d"],
    key: Float[Tensor, "b hk B R d"],
    value: Float[Tensor, "b hk B R dv"],
    selection: Selection,
    scale: float,
    *,
    key_bias: Float[Tensor, "b hk B R"] | None = None,
    query_time: Int[Tensor, "C X"] | None = None,
    key_time: Int[Tensor, "B R"] | None = None,
    far: FarCells | None = None,
    offsets: Offsets | None = None,
    softcap: float = 0.0,
) -> tuple[Float[Tensor, "b h C X dv"], Float[Tensor, "b h C X"]]:
    """Attend from queries laid out cell by cell to keys laid out block by block.

    Args:
        key_bias: Added to every logit of a key, -inf for an empty place of a block.
        query_time, key_time: Keys of a later time than the query do not exist; None for no times.
        offsets: With `of_query` (C, X) and `of_key` (B, R).
        far: What each cell reads besides; not with offsets or a cap.
    """
    selection = with_a_slot(selection)
    heads, key_heads = query.shape[1], key.shape[1]
    tiles = heads if selection.blocks.shape[1] == heads else key_heads
    slot_bias = None
    if selection.bias is not None:
        slot_bias = selection.bias.to(wide(query))
        slot_bias = slot_bias.expand(-1, tiles, -1, -1)
    if query_time is not None:
        query_time = query_time.repeat(1, heads // tiles)
    table = of_query = None
    if offsets is not None:  # the heads of a tile have their entries one after another
        table = offsets.table.unflatten(1, (tiles, -1)).flatten(2)
        first = torch.arange(heads // tiles, device=query.device) * offsets.table.shape[2]
        of_query = (offsets.of_query[:, None] + first[:, None]).flatten(1)
    sums = plan = None
    if far is not None:
        sums = block_sums(key.detach(), value.detach(), key_bias)
        plan = far.plan(sums)
    out, lse = call(
        attend_chunked,
        rearrange(query, "b (t g) c x d -> b t c (g x) d", t=tiles),
        key,
        value,
        selection.blocks.expand(-1, tiles, -1, -1),
        slot_bias=slot_bias,
        key_bias=key_bias,
        offset_bias=table,
        query_time=query_time,
        key_time=key_time,
        query_offset=of_query,
        key_offset=None if offsets is None else offsets.of_key,
        **far_arguments(plan, sums),
        scale=scale,
        softcap=softcap,
    )
    return (
        rearrange(out, "b t c (g x) d -> b (t g) c x d", g=heads // tiles),
        rearrange(lse, "b t c (g x) -> b (t g) c x", g=heads // tiles),
    )


def with_a_slot(selection: Selection) -> Selection:
    """A selection of width 0 gets one empty slot: no maximum is over nothing."""
    if selection.blocks.shape[3]:
        return selection
    bias = None if selection.bias is None else F.pad(selection.bias, (0, 1))
    return Selection(F.pad(selection.blocks, (0, 1), value=-1), bias)


@torch.library.custom_op("ndgpa::attend_chunked", mutates_args=())
def attend_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    offset_bias: Tensor | None,
    far_sums: Tensor | None,
    far_bundle: Tensor | None,
    far_less: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_offset: Tensor | None,
    key_offset: Tensor | None,
    far_segment: Tensor | None,
    far_space: Tensor | None,
    far_table: Tensor | None,
    far_more: Tensor | None,
    far_bundles: int,
    far_square: float,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:  # (b, t, C, X, dv), (b, t, C, X)
    """Output and log-sum-exp. Arguments as in `Inputs`."""
    check_block_ids(blocks, key.shape[2])
    given: Any = slot_bias, key_bias, offset_bias, far_sums, far_bundle, far_less
    given += query_time, key_time, query_offset, key_offset, far_segment, far_space, far_table
    given += far_more, far_bundles, far_square, scale, softcap
    engine = Cells(Inputs(query, key, value, blocks, *given))
    out, lse = _empty_out(query, value)
    with without_autocast(query):
        attend(engine.tiles(), out.flatten(0, 2), lse.flatten(0, 2))
    return out, lse


@attend_chunked.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _empty_out(query, value)


def _empty_out(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = value.new_empty(*query.shape[:-1], value.shape[-1])
    return out, query.new_empty(query.shape[:-1], dtype=wide(query))


@torch.library.custom_op("ndgpa::attend_chunked_backward", mutates_args=())
def attend_chunked_backward(
    grad_out: Tensor,  # (b, t, C, X, dv)
    grad_lse: Tensor,  # (b, t, C, X)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    offset_bias: Tensor | None,
    far_sums: Tensor | None,
    far_bundle: Tensor | None,
    far_less: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_offset: Tensor | None,
    key_offset: Tensor | None,
    far_segment: Tensor | None,
    far_space: Tensor | None,
    far_table: Tensor | None,
    far_more: Tensor | None,
    far_bundles: int,
    far_square: float,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and the three biases (empty where a bias is None)."""
    biases = slot_bias, key_bias, offset_bias
    given: Any = *biases, far_sums, far_bundle, far_less, query_time, key_time
    given += query_offset, key_offset, far_segment, far_space, far_table, far_more
    given += far_bundles, far_square, scale, softcap
    engine = Cells(Inputs(query, key, value, blocks, *given))
    *grads, grad_slot, grad_bias, grad_offset = _empty_grads(query, key, value, *biases)
    totals = Tables(*(x.flatten(0, 2) for x in grads))
    of_out, of_lse = grad_out.flatten(0, 2), grad_lse.flatten(0, 2)
    with without_autocast(query):
        for tile, slope in differentiate(engine.tiles(), totals, of_out, of_lse):
            near = slope[..., tile.near]
            if slot_bias is not None:
                by_slot = near.unflatten(2, (-1, key.shape[3])).sum(dim=(1, 3))
                grad_slot.flatten(0, 2)[tile.chunk, : by_slot.shape[1]] = by_slot
            if key_bias is not None:
                tile.keys.add(grad_bias.flatten(0, 2), near.sum(dim=1))
            if offset_bias is not None:
                engine.add_to_offsets(grad_offset.flatten(0, 1), tile, slope)
            engine.add_to_far(tile, slope, of_out)
            del tile, slope, near
        engine.add_sums(grads[1], grads[2])
    by_key, by_value = grads[1].to(key.dtype), grads[2].to(value.dtype)
    return grads[0], by_key, by_value, grad_slot, grad_bias, grad_offset


@attend_chunked_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    *others: Any,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(query, key, value, *others[:3])
    return grads[0], grads[1].to(key.dtype), grads[2].to(value.dtype), *grads[3:]


def _empty_grads(
    query: Tensor, key: Tensor, value: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go: sums over cells start at zero, in float32 or wider."""
    slot, of_key, offset = (
        query.new_zeros((0,) if x is None else x.shape, dtype=wide(query)) for x in biases
    )
    return (
        query.new_empty(query.shape),
        key.new_zeros(key.shape, dtype=wide(query)),
        value.new_zeros(value.shape, dtype=wide(query)),
        slot,
        of_key,
        offset,
    )


_NAMES = ("query", "key", "value", "slot_bias", "key_bias", "offset_bias")


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    given = Inputs(*kept_inputs(ctx))
    grads = attend_chunked_backward(grad_out, grad_lse, *given)
    found = {n: g for n, g in zip(_NAMES, grads) if getattr(given, n) is not None}
    return gradients(Inputs, **found)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, one chunk that is everything."""
    grad_out, grad_lse, *given = kept_inputs(ctx)

    def formula(given: Inputs) -> tuple[Tensor, Tensor]:
        if given.far_sums is not None:
            given = given._replace(far_sums=block_sums(given.key, given.value, given.key_bias))
        tile = Cells(given).whole().contained
        out = tile.out.to(given.value.dtype)
        return out.view(grad_out.shape), tile.softmax.lse.view(grad_lse.shape)

    by_grads, by_inputs = differentiate_gradient(
        formula, Inputs(*given), _NAMES, [grad_out, grad_lse], cotangents
    )
    return *by_grads, *by_inputs


attend_chunked.register_autograd(_backward, setup_context=keep_inputs)
attend_chunked_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
attend_chunked.register_vmap(fold_into_batch(attend_chunked, batched=10))
attend_chunked_backward.register_vmap(fold_into_batch(attend_chunked_backward, batched=12))


@count_products("attend_chunked")
def _(*inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention(_pairs(given), given.query[4], given.value[4])


@count_products("attend_chunked_backward")
def _(grad_out: Any, grad_lse: Any, *inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention_backward(_pairs(given), given.query[4], given.value[4])


def _pairs(given: Any) -> int:
    """Queries by the keys of all slots and by far keys, given shapes."""
    return math.prod(given.query[:4]) * (given.blocks[3] * given.key[3] + given.far_bundles)
