"""The `torch` backend: the definition in bounded memory, a few cells at a time.

Keys and values are laid out block by block once; a chunk of cells then gathers whole blocks as
single rows, attends, and is forgotten. The backward recomputes each chunk. Forward and backward are
one opaque operator each, so a compiled graph holds one node for any number of chunks; the second
derivative differentiates the plain formula.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import differentiate_gradient, fold_into_batch, no_tangents, without_autocast
from ndgpa.attention.softmax import Softmax, softmax
from ndgpa.problem import Selection, check_block_ids
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import is_full, take_sites

# Numbers that one chunk may hold at a time: about a processor's cache, or enough to fill a GPU.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}

Rows = slice | Tensor


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
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """As `reference`, with the memory of one chunk beside the inputs and outputs.

    Heads that share a selection and a key head share one tile of queries.
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
    )
    return structure.compose(out), structure.compose(lse[..., None])[..., 0]


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
) -> tuple[Float[Tensor, "b h C X dv"], Float[Tensor, "b h C X"]]:
    """Attend from queries laid out cell by cell to keys laid out block by block.

    Args:
        key_bias: Added to every logit of a key, -inf for an empty place of a block.
        query_time, key_time: Keys of a later time than the query do not exist; None for no times.
    """
    selection = with_a_slot(selection)
    heads, key_heads = query.shape[1], key.shape[1]
    tiles = heads if selection.blocks.shape[1] == heads else key_heads
    slot_bias = None
    if selection.bias is not None:
        slot_bias = selection.bias.to(torch.promote_types(query.dtype, torch.float32))
        slot_bias = slot_bias.expand(-1, tiles, -1, -1)
    if query_time is not None:
        query_time = query_time.repeat(1, heads // tiles)
    out, lse = attend_chunked(
        rearrange(query, "b (t g) c x d -> b t c (g x) d", t=tiles),
        key,
        value,
        selection.blocks.expand(-1, tiles, -1, -1),
        slot_bias,
        key_bias,
        query_time,
        key_time,
        scale,
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
    query: Tensor,  # (b, t, C, X, d): tiles of X queries
    key: Tensor,  # (b, hk, B, R, d)
    value: Tensor,  # (b, hk, B, R, dv)
    blocks: Tensor,  # (b, t, C, K) int, -1 for an empty slot
    slot_bias: Tensor | None,  # (b, t, C, K)
    key_bias: Tensor | None,  # (b, hk, B, R)
    query_time: Tensor | None,  # (C, X)
    key_time: Tensor | None,  # (B, R)
    scale: float,
) -> tuple[Tensor, Tensor]:  # (b, t, C, X, dv), (b, t, C, X)
    check_block_ids(blocks, key.shape[2])
    wide = torch.promote_types(query.dtype, torch.float32)
    out = value.new_empty(*query.shape[:-1], value.shape[-1])
    lse = query.new_empty(query.shape[:-1], dtype=wide)
    flat_out, flat_lse = out.flatten(0, 2), lse.flatten(0, 2)
    problem = _Tiles(query, key, value, blocks, slot_bias, key_bias, query_time, key_time, scale)
    with without_autocast(query):
        for chunk, width in problem.chunks():
            tile = problem.tile(chunk, width)
            flat_out[chunk] = tile.out.to(out.dtype)
            flat_lse[chunk] = tile.softmax.lse
    return out, lse


@attend_chunked.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    out = value.new_empty(*query.shape[:-1], value.shape[-1])
    return out, query.new_empty(query.shape[:-1], dtype=wide)


@torch.library.custom_op("ndgpa::attend_chunked_backward", mutates_args=())
def attend_chunked_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,  # (b, t, C, X, dv)
    grad_lse: Tensor,  # (b, t, C, X)
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, slot_bias and key_bias (the last two empty where None)."""
    grads = _empty_grads(query, key, value, slot_bias, key_bias)
    grad_query, grad_key, grad_value, grad_slot, grad_bias = grads
    flat_out, flat_lse = grad_out.flatten(0, 2), grad_lse.flatten(0, 2)
    flat_query = grad_query.flatten(0, 2)
    rows = key.shape[:3].numel()
    problem = _Tiles(query, key, value, blocks, slot_bias, key_bias, query_time, key_time, scale)
    with without_autocast(query):
        for chunk, width in problem.chunks():
            tile = problem.tile(chunk, width).contained
            g, weights = flat_out[chunk].to(grad_key.dtype), tile.softmax.weights
            slope = torch.bmm(g, tile.value.mT)  # (c, X, Y): by the weights, then by the logits
            mean = (slope * weights).sum(dim=-1, keepdim=True)
            slope.sub_(mean - flat_lse[chunk][..., None]).mul_(weights)
            if not tile.is_plain:
                slope.masked_fill_(weights == 0, 0)
            flat_query[chunk] = _scaled_bmm(slope, tile.key, scale).to(grad_query.dtype)
            _add_rows(grad_key, rows, tile, _scaled_bmm(slope.mT, tile.query, scale))
            _add_rows(grad_value, rows, tile, torch.bmm(weights.mT, g))
            if slot_bias is not None:
                by_slot = slope.unflatten(2, (-1, key.shape[3])).sum(dim=(1, 3))
                grad_slot.view(-1, blocks.shape[-1])[chunk, :width] = by_slot
            if key_bias is not None:
                _add_rows(grad_bias, rows, tile, slope.sum(dim=1))
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_slot, grad_bias


@attend_chunked_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(query, key, value, slot_bias, key_bias)
    return grads[0], grads[1].to(key.dtype), grads[2].to(value.dtype), grads[3], grads[4]


def _empty_grads(
    query: Tensor, key: Tensor, value: Tensor, slot_bias: Tensor | None, key_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go: sums over cells start at zero, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(query.shape),
        key.new_zeros(key.shape, dtype=wide),
        value.new_zeros(value.shape, dtype=wide),
        query.new_zeros((0,) if slot_bias is None else slot_bias.shape, dtype=wide),
        query.new_zeros((0,) if key_bias is None else key_bias.shape, dtype=wide),
    )


class _Tiles:
    """The flattened problem: one tile of queries a row, chunks of tiles computed on demand."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Tensor,
        slot_bias: Tensor | None,
        key_bias: Tensor | None,
        query_time: Tensor | None,
        key_time: Tensor | None,
        scale: float,
    ) -> None:
        batch, tiles, cells, self.places, _ = query.shape
        key_heads, num_blocks, self.sites = key.shape[1:4]
        self.query = query.flatten(0, 2)
        self.key, self.value = key.flatten(0, 2).flatten(1), value.flatten(0, 2).flatten(1)
        self.widths = key.shape[-1], value.shape[-1]
        self.key_bias = None if key_bias is None else key_bias.flatten(0, 2)
        self.slot_bias = None if slot_bias is None else slot_bias.flatten(0, 2)
        self.query_time, self.key_time, self.scale = query_time, key_time, scale
        self.cells = cells
        heads = torch.arange(tiles, device=blocks.device) // (tiles // key_heads)
        heads = heads + key_heads * torch.arange(batch, device=blocks.device)[:, None]
        self.first_row = (heads * num_blocks).repeat_interleave(cells)  # (tiles,)
        self.blocks = blocks.flatten(0, 2)
        self.has_empty = blocks.is_cuda or bool((blocks < 0).any())

    def _is_plain(self, rows: Tensor, empty: Tensor) -> bool:
        """Whether a softmax of bare logits is all there is to do, so that a short last block costs
        only those that read it. A GPU is not asked; it would be waited for."""
        if self.query_time is not None or self.slot_bias is not None or rows.is_cuda:
            return False
        if self.has_empty and bool(empty.any()):
            return False
        return self.key_bias is None or not self._is_biased(self.key_bias, rows)

    def _is_biased(self, key_bias: Tensor, rows: Tensor) -> bool:
        """Whether a key of these blocks has a bias; any, where the bias shall get a gradient."""
        return key_bias.requires_grad or bool((key_bias.index_select(0, rows) != 0).any())

    def chunks(self) -> Iterator[tuple[Rows, int]]:
        """Tiles that keep to the budget together, and how many of their slots to look at.

        Tiles of very different length go together with their like, the longest first.
        """
        count, width = self.blocks.shape
        lengths = None if self.query.is_cuda or not self.has_empty else self._lengths()
        if lengths is None or 4 * int(lengths.sum()) > 3 * lengths.numel() * width:
            size = self._room(width)
            yield from ((slice(i, i + size), width) for i in range(0, count, size))
            return
        lengths, order = lengths.sort(descending=True, stable=True)
        begin = 0
        while begin < count:
            width = max(1, int(lengths[begin]))
            end = begin + self._room(width)
            yield order[begin:end], width
            begin = end

    def _room(self, width: int) -> int:
        """How many tiles of so many slots fit."""
        keys = width * self.sites
        numbers = 2 * self.places * keys + keys * sum(self.widths)
        return max(1, _CHUNK["cuda" if self.query.is_cuda else "cpu"] // max(1, numbers))

    def _lengths(self) -> Tensor:  # (tiles,)
        """The slots of each tile up to the last one that is filled."""
        place = torch.arange(1, self.blocks.shape[1] + 1, device=self.blocks.device)
        return (place * (self.blocks >= 0)).amax(dim=1)

    def tile(self, chunk: Rows, width: int) -> "_Tile":
        """Softmax weights of the chunk; differentiable, in float32 or wider."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        blocks = self.blocks[chunk, :width]
        rows = (blocks.clamp(min=0) + self.first_row[chunk, None]).flatten()
        empty = blocks < 0
        query = self.query[chunk].to(wide)
        key = self._gather(self.key, rows, empty).unflatten(1, (-1, self.widths[0])).to(wide)
        value = self._gather(self.value, rows, empty).unflatten(1, (-1, self.widths[1])).to(wide)
        logits = _scaled_bmm(query, key.mT, self.scale)
        is_plain = self._is_plain(rows, empty)
        is_causal = self.query_time is not None
        if not is_plain:
            logits = logits + self._bias(chunk, rows, empty, wide)
        if self.query_time is not None and self.key_time is not None:
            now = self.query_time[self._cell(chunk)]
            then = self.key_time[blocks.clamp(min=0)].flatten(1)
            logits = logits.masked_fill(then[:, None] > now[:, :, None], -torch.inf)
        weights = softmax(logits, may_be_blind=not is_plain)
        unused = empty.flatten() if self.has_empty else None
        return _Tile(query, key, value, rows, unused, weights, is_plain, is_causal)

    def _gather(self, table: Tensor, rows: Tensor, empty: Tensor) -> Tensor:  # (c, K * row)
        """Whole blocks as rows; zeros in empty slots."""
        taken = table.index_select(0, rows).view(*empty.shape, table.shape[1])
        if self.has_empty:
            taken.masked_fill_(empty[..., None], 0)
        return taken.flatten(1)

    def _bias(self, chunk: Rows, rows: Tensor, empty: Tensor, wide: torch.dtype) -> Tensor:
        """What is added to the logits of each key of the chunk: (c, 1, Y)."""
        bias = torch.zeros((*empty.shape, 1), dtype=wide, device=rows.device)
        if self.slot_bias is not None:
            bias = bias + self.slot_bias[chunk, : empty.shape[1]][..., None]
        if self.key_bias is not None:
            bias = bias + self.key_bias.index_select(0, rows).view(*empty.shape, self.sites)
        bias = bias.masked_fill(empty[..., None], -torch.inf)
        return bias.expand(-1, -1, self.sites).flatten(1)[:, None]

    def _cell(self, chunk: Rows) -> Tensor:
        """The cell of each tile of the chunk."""
        tiles = torch.arange(len(self.query), device=self.query.device)[chunk]
        return tiles % self.cells


@dataclass(frozen=True)
class _Tile:
    query: Tensor  # (c, X, d)
    key: Tensor  # (c, Y, d)
    value: Tensor  # (c, Y, dv)
    rows: Tensor  # (c * K,): rows of the key table
    empty: Tensor | None  # (c * K,): empty slots, whose row stands for nothing
    softmax: Softmax  # (c, X, Y)
    is_plain: bool  # no key is hidden from any query, and none has a bias
    is_causal: bool  # keys may be hidden that are not finite, and a weight of 0 does not hide NaN

    @property
    def out(self) -> Tensor:  # (c, X, dv)
        """The weighted values; NaN where one that is not finite has a weight.

        A value that is not finite spoils its feature for all queries of the tile, also at a weight
        of 0; so where the result is finite, all values were.
        """
        out = torch.bmm(self.softmax.weights, self.value)
        if not self.is_causal or _are_finite(out):
            return out
        bad = ~self.value.isfinite()
        out = torch.bmm(self.softmax.weights, self.value.masked_fill(bad, 0))
        counts = torch.bmm((self.softmax.weights > 0).to(out.dtype), bad.to(out.dtype))
        return out.masked_fill(counts > 0, torch.nan)

    @property
    def contained(self) -> "_Tile":
        """The same with zeros for keys and values that are not finite, where any may be hidden."""
        if not self.is_causal or _are_finite(self.key, self.value):
            return self
        key, value = (x.nan_to_num(0.0, 0.0, 0.0) for x in (self.key, self.value))
        return replace(self, key=key, value=value)


def _are_finite(*xs: Tensor) -> bool:
    """Whether all numbers are, by their sums; a GPU is not asked, for it would be waited for."""
    return not xs[0].is_cuda and all(bool(x.sum().isfinite()) for x in xs)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _add_rows(total: Tensor, count: int, tile: _Tile, part: Tensor) -> None:
    """Add parts to the rows of a tile, always in the same order; nothing of empty slots."""
    total, part = total.view(count, -1), part.reshape(len(tile.rows), -1)
    if tile.empty is not None:
        part = part.masked_fill(tile.empty[:, None], 0)
    if total.is_cuda:  # index_add_ is atomic there; this sorts
        total.index_put_((tile.rows,), part, accumulate=True)
    else:
        total.index_add_(0, tile.rows, part)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.scale = inputs[-1]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, *rest = ctx.saved_tensors
    grads = attend_chunked_backward(query, key, value, grad_out, grad_lse, *rest, ctx.scale)
    slot = grads[3] if rest[1] is not None else None
    bias = grads[4] if rest[2] is not None else None
    return *grads[:3], None, slot, bias, None, None, None


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, one chunk that is everything."""
    saved = ctx.saved_tensors
    query, key, value, grad_out, grad_lse, blocks, slot, bias, query_time, key_time = saved

    def formula(q: Tensor, k: Tensor, v: Tensor, slot: Any, bias: Any) -> tuple[Tensor, Tensor]:
        problem = _Tiles(q, k, v, blocks, slot, bias, query_time, key_time, ctx.scale)
        tile = problem.tile(slice(None), blocks.shape[-1]).contained
        out = torch.bmm(tile.softmax.weights, tile.value).to(v.dtype)
        return out.view(grad_out.shape), tile.softmax.lse.view(grad_lse.shape)

    given = [query, key, value, slot, bias]
    by_input, by_grads = differentiate_gradient(formula, given, [grad_out, grad_lse], cotangents)
    return *by_input[:3], *by_grads, None, *by_input[3:], None, None, None


attend_chunked.register_autograd(_backward, setup_context=_save)
attend_chunked_backward.register_autograd(_backward_twice, setup_context=_save)
attend_chunked.register_vmap(fold_into_batch(attend_chunked, batched=6))
attend_chunked_backward.register_vmap(fold_into_batch(attend_chunked_backward, batched=8))


@count_products(attend_chunked)
def _(query: Any, key: Any, value: Any, blocks: Any, *_: Any, **__: Any) -> int:
    return attention(_pairs(query, key, blocks), query[-1], value[-1])


@count_products(attend_chunked_backward)
def _(
    query: Any, key: Any, value: Any, grad_out: Any, grad_lse: Any, blocks: Any, *_: Any, **__: Any
) -> int:
    return attention_backward(_pairs(query, key, blocks), query[-1], value[-1])


def _pairs(query: Any, key: Any, blocks: Any) -> int:
    """Queries by the keys of all slots, given shapes."""
    return math.prod(query[:4]) * blocks[3] * key[3]
