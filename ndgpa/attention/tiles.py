"""Attention whose reading pattern is known beforehand, in tiles.

A tile is a few queries that read nearly the same keys: it gathers the keys that any of them reads
and hides from each query those that it does not (with a weight of 0: where a key is not finite,
all queries of its tile are lost). Tiles are computed a chunk at a time and again in
the backward, so the memory beside inputs and outputs is that of one chunk. Forward and backward
are one opaque operator each, so a compiled graph holds one node for any number of chunks.

Letters: T tiles of X queries and Y keys, P patterns, g query heads for each key head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    cast_for_autocast,
    differentiate_gradient,
    fold_into_batch,
    without_autocast,
)
from ndgpa.attention.softmax import softmax

# Numbers that one chunk may hold at a time: about a processor's cache, or enough to fill a GPU.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}


@dataclass(frozen=True)
class Tiles:
    """Which keys each query reads.

    Args:
        queries: The queries of each tile, -1 for an empty place; every query stands in one place.
        keys: The keys of each tile, none twice, -1 for an empty place.
        pattern: The pattern of each tile; None for one pattern that serves all.
        seen: For each pattern, which places see which; an axis of 1 serves all. None for all.
        offset: For each pattern, the entry of the relative bias of each pair; None for no bias.
    """

    queries: Int[Tensor, "T X"]
    keys: Int[Tensor, "T Y"]
    pattern: Int[Tensor, " T"] | None = None
    seen: Bool[Tensor, "P #X #Y"] | None = None
    offset: Int[Tensor, "P X Y"] | None = None

    def mask(self, num_sites: int, num_keys: int) -> Bool[Tensor, "n n_k"]:
        """Which site reads which."""
        reads = (self.queries >= 0)[:, :, None] & (self.keys >= 0)[:, None]
        if self.seen is not None:
            reads = reads & (self.seen if self.pattern is None else self.seen[self.pattern])
        tile, place, slot = reads.nonzero(as_tuple=True)
        mask = reads.new_zeros(num_sites, num_keys)
        mask[self.queries[tile, place], self.keys[tile, slot]] = True
        return mask


def attend_in_tiles(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    tiles: Tiles,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    bias: Float[Tensor, "h entries"] | None = None,
) -> Float[Tensor, "b h n dv"]:
    """Softmax attention from every query to the keys that it reads; 0 where it reads none.

    Args:
        scale: Factor of the dot products; None means 1/sqrt(d).
        key_mask: True where a key is seen.
        bias: Added to the logits, the entry that `tiles.offset` names.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = cast_for_autocast(query, key, value)
    if key_mask is not None:
        unseen = ~key_mask[:, None, :, None]
        key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
    tables = (tiles.queries, tiles.keys, tiles.pattern, tiles.seen, tiles.offset)
    return attend_tiles(query, key, value, key_mask, bias, *tables, scale)


@torch.library.custom_op("ndgpa::attend_tiles", mutates_args=())
def attend_tiles(
    query: Tensor,  # (b, h, n, d)
    key: Tensor,  # (b, hk, n_k, d)
    value: Tensor,  # (b, hk, n_k, dv)
    key_mask: Tensor | None,  # (b, n_k)
    bias: Tensor | None,  # (h, entries)
    queries: Tensor,  # (T, X)
    keys: Tensor,  # (T, Y)
    pattern: Tensor | None,  # (T,)
    seen: Tensor | None,  # (P, X, Y)
    offset: Tensor | None,  # (P, X, Y)
    scale: float,
) -> Tensor:  # (b, h, n, dv)
    problem = _Problem(
        query, key, value, key_mask, bias, queries, keys, pattern, seen, offset, scale
    )
    rows = _Rows(query.shape[:3], value.shape[3], value)
    with without_autocast(query):
        for chunk in problem.chunks():
            tile = problem.tile(chunk)
            rows.put(tile.query_rows, tile.weights @ tile.value)
    return rows.result()


@attend_tiles.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    pattern: Tensor | None,
    seen: Tensor | None,
    offset: Tensor | None,
    scale: float,
) -> Tensor:
    return value.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("ndgpa::attend_tiles_backward", mutates_args=())
def attend_tiles_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,  # (b, h, n, dv)
    key_mask: Tensor | None,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    pattern: Tensor | None,
    seen: Tensor | None,
    offset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias (empty where it is None)."""
    problem = _Problem(
        query, key, value, key_mask, bias, queries, keys, pattern, seen, offset, scale
    )
    _, grad_key, grad_value, grad_bias = _sums(query, key, value, bias)
    grad_query = _Rows(query.shape[:3], query.shape[3], query)
    flat_out = grad_out.reshape(-1, grad_out.shape[-1])
    with without_autocast(query):
        for chunk in problem.chunks():
            tile = problem.tile(chunk)
            g = problem.gather_queries(flat_out, tile)
            slope = g @ tile.value.mT  # by the weights, then by the logits
            slope = tile.weights * (slope - (slope * tile.weights).sum(dim=-1, keepdim=True))
            grad_query.put(tile.query_rows, slope @ tile.key * scale)
            _add_rows(grad_key, tile.key_rows, slope.mT @ tile.query * scale)
            _add_rows(grad_value, tile.key_rows, tile.weights.mT @ g)
            if bias is not None:
                problem.add_to_bias(grad_bias, chunk, slope)
    return grad_query.result(), grad_key.to(key.dtype), grad_value.to(value.dtype), grad_bias


@attend_tiles_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    key_mask: Tensor | None,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    pattern: Tensor | None,
    seen: Tensor | None,
    offset: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _sums(query, key, value, bias)
    return grads[0], grads[1].to(key.dtype), grads[2].to(value.dtype), grads[3]


def _sums(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go; sums over tiles start at zero, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(query.shape),
        key.new_zeros(key.shape, dtype=wide),
        value.new_zeros(value.shape, dtype=wide),
        query.new_empty(0) if bias is None else bias.new_zeros(bias.shape),
    )


@dataclass(frozen=True)
class _Tile:
    """A chunk of c tiles for every batch and key head: batches of b * hk * c."""

    query: Tensor  # (b*hk*c, g*X, d)
    key: Tensor  # (b*hk*c, Y, d)
    value: Tensor  # (b*hk*c, Y, dv)
    weights: Tensor  # (b*hk*c, g*X, Y), 0 throughout for a query that sees nothing
    query_rows: Tensor  # (b*hk*c*g*X,) of the flattened queries, -1 for an empty place
    key_rows: Tensor  # (b*hk*c*Y,) of the flattened keys, -1 for an empty place


class _Problem:
    """The flattened problem: weights of a chunk of tiles on demand, differentiable."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        bias: Tensor | None,
        queries: Tensor,
        keys: Tensor,
        pattern: Tensor | None,
        seen: Tensor | None,
        offset: Tensor | None,
        scale: float,
    ) -> None:
        self.batch, heads, self.num_sites, _ = query.shape
        self.key_heads, self.num_keys = key.shape[1:3]
        self.group = heads // self.key_heads
        self.query, self.key, self.value = (x.reshape(-1, x.shape[-1]) for x in (query, key, value))
        self.key_mask, self.bias, self.scale = key_mask, bias, scale
        self.queries, self.keys, self.pattern, self.offset = queries, keys, pattern, offset
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.unseen = None if seen is None else self._minus_infinity(~seen)
        self.empty_keys = keys.is_cuda or bool((keys < 0).any())
        empty_queries = queries.is_cuda or bool((queries < 0).any())
        self.may_be_blind = key_mask is not None or empty_queries
        nothing_hidden = seen is None and key_mask is None and not self.empty_keys
        self.is_plain = nothing_hidden and bias is None

    def chunks(self) -> Iterator[slice]:
        """Ranges of tiles that keep to the budget; none for a batch of 0."""
        x, y = self.queries.shape[1] * self.group, self.keys.shape[1]
        numbers = 3 * x * y + (x + y) * (self.query.shape[1] + self.value.shape[1])
        budget = _CHUNK["cuda" if self.query.is_cuda else "cpu"]
        size = max(1, budget // max(1, numbers * self.batch * self.key_heads))
        count = len(self.queries) if self.batch else 0
        return (slice(i, i + size) for i in range(0, count, size))

    def tile(self, chunk: slice) -> _Tile:
        query_rows = _rows(
            self.queries[chunk, None], (self.batch, self.key_heads, 1, self.group), self.num_sites
        )
        key_rows = _rows(self.keys[chunk], (self.batch, self.key_heads, 1), self.num_keys)
        tiles = query_rows.shape[:3].numel()
        query = _take(self.query, query_rows, self.wide).view(
            tiles, query_rows.shape[3:].numel(), -1
        )
        key, value = (
            _take(x, key_rows, self.wide, self.empty_keys).view(tiles, key_rows.shape[3], -1)
            for x in (self.key, self.value)
        )
        weights = self._weights(chunk, query @ key.mT * self.scale)
        return _Tile(query, key, value, weights, query_rows.flatten(), key_rows.flatten())

    def gather_queries(self, x: Tensor, tile: _Tile) -> Tensor:  # (rows, d) -> (b*hk*c, g*X, d)
        """As the queries of a tile; zeros in empty places."""
        return _take(x, tile.query_rows, self.wide, hide=True).view(*tile.query.shape[:2], -1)

    def add_to_bias(self, grad: Tensor, chunk: slice, slope: Tensor) -> None:
        """Add the gradients of the logits to the entries of the bias they came through."""
        assert self.offset is not None
        by_head = self._unflatten(slope).sum(dim=0).transpose(1, 2)  # (hk, g, c, X, Y)
        tiles = by_head.shape[2]
        by_head = by_head.reshape(len(grad), -1).to(grad.dtype)
        entries = self._of_pattern(self.offset, chunk).expand(tiles, -1, -1).flatten().long()
        if grad.is_cuda:  # scatter_add_ is atomic there; this sorts
            head = torch.arange(len(grad), device=grad.device)[:, None]
            grad.index_put_((head, entries), by_head, accumulate=True)
        else:
            grad.scatter_add_(1, entries.expand(len(grad), -1), by_head)

    def _weights(self, chunk: slice, logits: Tensor) -> Tensor:
        if self.is_plain:
            return logits.softmax(dim=-1)
        logits = self._unflatten(logits)
        if self.bias is not None:
            assert self.offset is not None
            table = self.bias.to(self.wide).view(self.key_heads, self.group, -1)
            added = table[:, :, self._of_pattern(self.offset, chunk).long()]  # (hk, g, c, X, Y)
            logits = logits + added.transpose(1, 2)
        hidden = self._hidden(chunk)
        if hidden is not None:
            logits = logits + hidden
        weights = softmax(logits, self.may_be_blind).weights
        return weights.flatten(3, 4).flatten(0, 2)

    def _hidden(self, chunk: slice) -> Tensor | None:  # (b or 1, 1, c or 1, 1, X or 1, Y or 1)
        """What is added to the logits: -inf for a pair that is hidden, 0 for the others."""
        keys, parts = self.keys[chunk], []
        if self.unseen is not None:
            parts.append(self._of_pattern(self.unseen, chunk)[None, None, :, None])
        if self.empty_keys:
            parts.append(self._minus_infinity(keys < 0)[None, None, :, None, None])
        if self.key_mask is not None:
            unseen = ~self.key_mask[:, keys.clamp(min=0)]
            parts.append(self._minus_infinity(unseen)[:, None, :, None, None])
        return sum(parts[1:], parts[0]) if parts else None

    def _minus_infinity(self, where: Tensor) -> Tensor:
        return torch.zeros(where.shape, dtype=self.wide, device=where.device).masked_fill(
            where, -torch.inf
        )

    def _of_pattern(self, table: Tensor, chunk: slice) -> Tensor:  # (c or 1, X, Y)
        return table if self.pattern is None else table[self.pattern[chunk]]

    def _unflatten(self, x: Tensor) -> Tensor:  # (b*hk*c, g*X, Y) -> (b, hk, c, g, X, Y)
        return x.view(
            self.batch, self.key_heads, -1, self.group, x.shape[1] // self.group, x.shape[2]
        )


class _Rows:
    """A tensor of one row a site, filled bit by bit; what is put into row -1 is dropped."""

    def __init__(self, shape: torch.Size, width: int, like: Tensor) -> None:
        self.shape = (*shape, width)
        self.rows = like.new_empty(math.prod(shape) + 1, width)

    def put(self, rows: Tensor, x: Tensor) -> None:
        rows = torch.where(rows < 0, len(self.rows) - 1, rows)
        self.rows.index_copy_(0, rows, x.reshape(len(rows), -1).to(self.rows.dtype))

    def result(self) -> Tensor:
        return self.rows[:-1].view(self.shape)


def _rows(sites: Tensor, leading: tuple[int, ...], count: int) -> Tensor:
    """Rows of sites in a table flattened over batch and heads, in the order of `leading`.

    `leading` counts (batch, key heads, 1[, query heads of a key head]); sites (c, ...) become
    (b, hk, c, ...). A site -1 stays -1.
    """
    device = sites.device
    ids = torch.arange(math.prod(leading), device=device).view(*leading, 1)
    return torch.where(sites < 0, -1, sites + ids * count)


def _take(x: Tensor, rows: Tensor, dtype: torch.dtype, hide: bool = False) -> Tensor:
    """The rows named, any row in place of a row -1; with `hide`, zeros there."""
    flat = rows.flatten()
    taken = x.index_select(0, flat.clamp(min=0)).to(dtype)
    return taken.masked_fill((flat < 0)[:, None], 0) if hide else taken


def _add_rows(total: Tensor, rows: Tensor, part: Tensor) -> None:
    """Add parts to the rows named, always in the same order; nothing for a row -1."""
    total, part = total.view(-1, total.shape[-1]), part.reshape(len(rows), -1)
    part = part.masked_fill_((rows < 0)[:, None], 0)
    if total.is_cuda:  # index_add_ is atomic there; this sorts
        total.index_put_((rows.clamp(min=0),), part, accumulate=True)
    else:
        total.index_add_(0, rows.clamp(min=0), part)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.scale = inputs[-1]


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, *rest = ctx.saved_tensors
    grads = attend_tiles_backward(query, key, value, grad_out, *rest, ctx.scale)
    return *grads[:3], None, None if rest[1] is None else grads[3], *[None] * 6


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, one chunk that is everything."""
    query, key, value, grad_out, key_mask, bias, *tables = ctx.saved_tensors
    options = (*tables, ctx.scale)

    def formula(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
        tile = _Problem(q, k, v, key_mask, bias, *options).tile(slice(None))
        rows = _Rows(q.shape[:3], v.shape[3], v.detach())
        rows.put(tile.query_rows, tile.weights @ tile.value)
        return rows.result()

    given = [query, key, value, bias]
    by_input, by_grads = differentiate_gradient(formula, given, [grad_out], cotangents)
    return *by_input[:3], *by_grads, None, by_input[3], *[None] * 6


attend_tiles.register_autograd(_backward, setup_context=_save)
attend_tiles_backward.register_autograd(_backward_twice, setup_context=_save)
attend_tiles.register_vmap(fold_into_batch(attend_tiles, batched=4))
attend_tiles_backward.register_vmap(fold_into_batch(attend_tiles_backward, batched=5))


@count_products(attend_tiles)
def _(
    query: Any,
    key: Any,
    value: Any,
    key_mask: Any,
    bias: Any,
    queries: Any,
    keys: Any,
    *_: Any,
    **__: Any,
) -> int:
    pairs = math.prod(query[:2]) * math.prod(queries) * keys[1]
    return attention(pairs, query[3], value[3])


@count_products(attend_tiles_backward)
def _(
    query: Any,
    key: Any,
    value: Any,
    grad_out: Any,
    key_mask: Any,
    bias: Any,
    queries: Any,
    keys: Any,
    *_: Any,
    **__: Any,
) -> int:
    pairs = math.prod(query[:2]) * math.prod(queries) * keys[1]
    return attention_backward(pairs, query[3], value[3])
