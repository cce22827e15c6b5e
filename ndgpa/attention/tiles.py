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
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    call,
    cast_for_autocast,
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    wide,
    without_autocast,
)
from ndgpa.attention.chunks import chunks, room
from ndgpa.attention.engine import Tables, Tile, attend, differentiate, scaled_bmm
from ndgpa.attention.rows import Rows
from ndgpa.attention.softmax import softmax
from ndgpa.structures.tables import is_full


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
    return call(attend_tiles, query, key, value, key_mask, bias, **vars(tiles), scale=scale)


class Inputs(NamedTuple):
    """What `attend_tiles` takes, in its order."""

    query: Tensor  # (b, h, n, d)
    key: Tensor  # (b, hk, n_k, d)
    value: Tensor  # (b, hk, n_k, dv)
    key_mask: Tensor | None  # (b, n_k)
    bias: Tensor | None  # (h, entries)
    queries: Tensor  # (T, X)
    keys: Tensor  # (T, Y)
    pattern: Tensor | None  # (T,)
    seen: Tensor | None  # (P, X, Y)
    offset: Tensor | None  # (P, X, Y)
    scale: float


@torch.library.custom_op("ndgpa::attend_tiles", mutates_args=())
def attend_tiles(
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
) -> Tensor:  # (b, h, n, dv)
    """The output. Arguments as in `Inputs`."""
    engine = _Engine(
        Inputs(query, key, value, key_mask, bias, queries, keys, pattern, seen, offset, scale)
    )
    out = _query_table(query, value)
    with without_autocast(query):
        attend(engine.tiles(), out)
    return out[:-1].view(*query.shape[:3], value.shape[3])


@attend_tiles.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return value.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("ndgpa::attend_tiles_backward", mutates_args=())
def attend_tiles_backward(
    grad_out: Tensor,  # (b, h, n, dv)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias (empty where it is None)."""
    engine = _Engine(
        Inputs(query, key, value, key_mask, bias, queries, keys, pattern, seen, offset, scale)
    )
    grad_query = _query_table(query, query)
    grad_key, grad_value = (x.new_zeros(x.shape, dtype=wide(x)) for x in (key, value))
    grad_bias = query.new_empty(0) if bias is None else torch.zeros_like(bias)
    tables = Tables(grad_query, grad_key.flatten(0, 2), grad_value.flatten(0, 2))
    with without_autocast(query):
        for tile, slope in differentiate(engine.tiles(), tables, grad_out.flatten(0, 2)):
            if bias is not None:
                engine.add_to_bias(grad_bias, tile.chunk, slope)
            del tile, slope
    by_query = grad_query[:-1].view(query.shape)
    return by_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_bias


@attend_tiles_backward.register_fake
def _(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    bias: Tensor | None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_query, by_key, by_value = (x.new_empty(x.shape) for x in (query, key, value))
    by_bias = query.new_empty(0) if bias is None else torch.empty_like(bias)
    return by_query, by_key, by_value, by_bias


def _query_table(query: Tensor, like: Tensor) -> Tensor:  # (b * h * n + 1, features)
    """One row a query, to be written, and one for what stands in empty places."""
    return like.new_empty(math.prod(query.shape[:3]) + 1, like.shape[3])


class _Engine:
    """The flattened problem: its tiles are those of all batches and key heads."""

    def __init__(self, given: Inputs) -> None:
        self.batch, heads, self.num_sites, _ = given.query.shape
        self.key_heads, self.num_keys = given.key.shape[1:3]
        self.group = heads // self.key_heads
        self.query, self.key, self.value = (
            x.flatten(0, 2) for x in (given.query, given.key, given.value)
        )
        self.given, self.wide = given, wide(given.query)
        self.unseen = None if given.seen is None else self._minus_infinity(~given.seen)
        self.empty_keys, self.empty_queries = (not is_full(x) for x in (given.keys, given.queries))
        has_mask = given.key_mask is not None
        self.is_masked = has_mask or given.seen is not None or self.empty_keys
        self.may_see_nothing = has_mask or (self.is_masked and self.empty_queries)

    def tiles(self) -> Iterator[Tile]:
        return map(self.tile, self.chunks())

    def whole(self) -> Tile:
        """All tiles as one chunk."""
        return self.tile(slice(None))

    def chunks(self) -> Iterator[slice]:
        """Ranges of tiles that keep to the budget; none for a batch of 0."""
        x, y = self.given.queries.shape[1] * self.group, self.given.keys.shape[1]
        numbers = 3 * x * y + (x + y) * (self.query.shape[1] + self.value.shape[1])
        size = room(numbers * self.batch * self.key_heads, self.query)
        return chunks(len(self.given.queries) if self.batch else 0, size)

    def tile(self, chunk: slice) -> Tile:
        places, slots = self.given.queries[chunk], self.given.keys[chunk]
        queries = self._rows(places, self.group, self.num_sites, self.empty_queries)
        keys = self._rows(slots, 1, self.num_keys, self.empty_keys)
        query, key, value = (
            rows.take(table, self.wide)
            for rows, table in ((queries, self.query), (keys, self.key), (keys, self.value))
        )
        logits = self._biased(chunk, scaled_bmm(query, key.mT, self.given.scale))
        weights = softmax(logits, may_see_nothing=self.may_see_nothing)
        return Tile(
            chunk, query, key, value, weights, self.given.scale, queries, keys, self.is_masked
        )

    def _rows(self, sites: Tensor, heads: int, count: int, has_empty: bool) -> Rows:
        """The rows of sites (c, places) in a table flattened over batch, heads and `count` sites.

        They are the rows of b * hk * c tiles, of `heads` heads for each key head.
        """
        first = torch.arange(self.batch * self.key_heads * heads, device=sites.device) * count
        ids = sites.clamp(min=0)[:, None] + first.view(self.batch, self.key_heads, 1, heads, 1)
        empty = (sites < 0)[:, None].expand(ids.shape).flatten() if has_empty else None
        return Rows(ids.flatten(), empty, math.prod(ids.shape[:3]))

    def add_to_bias(self, grad: Tensor, chunk: slice | Tensor, slope: Tensor) -> None:
        """Add the gradients of the logits to the entries of the bias they came through."""
        assert self.given.offset is not None
        by_head = self._unflatten(slope).sum(dim=0).transpose(1, 2)  # (hk, g, c, X, Y)
        tiles = by_head.shape[2]
        by_head = by_head.reshape(len(grad), -1).to(grad.dtype)
        entries = self._of_pattern(self.given.offset, chunk).expand(tiles, -1, -1).flatten().long()
        if grad.is_cuda:  # scatter_add_ is atomic there; this sorts
            head = torch.arange(len(grad), device=grad.device)[:, None]
            grad.index_put_((head, entries), by_head, accumulate=True)
        else:
            grad.scatter_add_(1, entries.expand(len(grad), -1), by_head)

    def _biased(self, chunk: slice, logits: Tensor) -> Tensor:  # (b*hk*c, g*X, Y)
        """The logits with their bias, -inf for a pair that is hidden."""
        by_head = self._unflatten(logits)
        if self.given.bias is not None:
            assert self.given.offset is not None
            table = self.given.bias.to(self.wide).view(self.key_heads, self.group, -1)
            added = table[:, :, self._of_pattern(self.given.offset, chunk).long()]
            by_head += added.transpose(1, 2)  # (hk, g, c, X, Y)
        hidden = self._hidden(chunk)
        if hidden is not None:
            by_head += hidden
        return logits

    def _hidden(self, chunk: slice) -> Tensor | None:  # (b or 1, 1, c or 1, 1, X or 1, Y or 1)
        """What is added to the logits: -inf for a pair that is hidden, 0 for the others."""
        keys, parts = self.given.keys[chunk], []
        if self.unseen is not None:
            parts.append(self._of_pattern(self.unseen, chunk)[None, None, :, None])
        if self.empty_keys:
            parts.append(self._minus_infinity(keys < 0)[None, None, :, None, None])
        if self.given.key_mask is not None:
            unseen = ~self.given.key_mask[:, keys.clamp(min=0)]
            parts.append(self._minus_infinity(unseen)[:, None, :, None, None])
        return sum(parts[1:], parts[0]) if parts else None

    def _minus_infinity(self, where: Tensor) -> Tensor:
        return torch.zeros(where.shape, dtype=self.wide, device=where.device).masked_fill(
            where, -torch.inf
        )

    def _of_pattern(self, table: Tensor, chunk: slice | Tensor) -> Tensor:  # (c or 1, X, Y)
        return table if self.given.pattern is None else table[self.given.pattern[chunk]]

    def _unflatten(self, x: Tensor) -> Tensor:  # (b*hk*c, g*X, Y) -> (b, hk, c, g, X, Y)
        return x.view(
            self.batch, self.key_heads, -1, self.group, x.shape[1] // self.group, x.shape[2]
        )


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    given = Inputs(*kept_inputs(ctx))
    query, key, value, bias = attend_tiles_backward(grad_out, *given)
    given_bias = None if given.bias is None else bias
    return gradients(Inputs, query=query, key=key, value=value, bias=given_bias)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, one chunk that is everything."""
    grad_out, *given = kept_inputs(ctx)

    def formula(given: Inputs) -> Tensor:
        out = _query_table(given.query, given.value.detach())
        attend([_Engine(given).whole()], out)
        return out[:-1].view(grad_out.shape)

    names = ("query", "key", "value", "bias")
    by_grads, by_inputs = differentiate_gradient(
        formula, Inputs(*given), names, [grad_out], cotangents
    )
    return *by_grads, *by_inputs


attend_tiles.register_autograd(_backward, setup_context=keep_inputs)
attend_tiles_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
attend_tiles.register_vmap(fold_into_batch(attend_tiles, batched=4))
attend_tiles_backward.register_vmap(fold_into_batch(attend_tiles_backward, batched=5))


@count_products("attend_tiles")
def _(*inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention(_pairs(given), given.query[3], given.value[3])


@count_products("attend_tiles_backward")
def _(grad_out: Any, *inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention_backward(_pairs(given), given.query[3], given.value[3])


def _pairs(given: Any) -> int:
    """Queries by the keys of their tiles, given shapes."""
    return math.prod(given.query[:2]) * math.prod(given.queries) * given.keys[1]
