"""The far field in bounded memory: `far_field.literal`, some queries at a time.

A chunk of queries meets all blocks, and is forgotten; the backward computes its weights again. The
second derivative differentiates the plain formula, chunk by chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import fold_into_batch, without_autocast
from ndgpa.attend.far_field import Askers, FarKeys

# Logits of one chunk: about a processor's cache, or enough to fill a GPU.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


def chunked(askers: Askers, keys: FarKeys, selected: Tensor) -> tuple[Tensor, Tensor]:
    """As `literal`, with the memory of one chunk beside the inputs and outputs."""
    _checks.no_tangents("torch", askers.query, keys.key, keys.value)
    return far_chunked(
        askers.query,
        keys.key,
        keys.value,
        keys.bias,
        selected,
        askers.cell,
        askers.time,
        keys.time,
        askers.group,
        keys.group,
        keys.scale,
    )


@torch.library.custom_op("ndgpa::far_chunked", mutates_args=())
def far_chunked(
    query: Tensor,  # (b, h, Q, d), float32 or wider, as all that is floating
    key: Tensor,  # (b, hk, B, d)
    value: Tensor,  # (b, hk, B, w)
    bias: Tensor,  # (b, hk, B), -inf for a block that does not exist
    selected: Tensor,  # (b, hs, C, K) int32, -1 for an empty slot
    cell: Tensor,  # (Q,)
    query_time: Tensor | None,  # (Q,)
    key_time: Tensor | None,  # (B,)
    query_group: Tensor | None,  # (Q,)
    key_group: Tensor | None,  # (B,)
    scale: float,
) -> tuple[Tensor, Tensor]:  # (b, h, Q, w), (b, h, Q)
    out, lse = _outputs(query, value)
    tables = selected, cell, query_time, key_time, query_group, key_group
    problem = _Far(query, key, value, bias, *tables, scale)
    flat_out, flat_lse = problem.by_row(out), problem.by_row(lse)
    with without_autocast(query):
        for tile in problem.tiles():
            flat_out[tile], flat_lse[tile] = problem.answer(tile, *problem.features(tile))
    return out, lse


@far_chunked.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    selected: Tensor,
    cell: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_group: Tensor | None,
    key_group: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _outputs(query, value)


def _outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return value.new_empty(*query.shape[:3], value.shape[3]), query.new_empty(query.shape[:3])


@torch.library.custom_op("ndgpa::far_chunked_backward", mutates_args=())
def far_chunked_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    grad_out: Tensor,  # (b, h, Q, w)
    grad_lse: Tensor,  # (b, h, Q)
    out: Tensor,  # (b, h, Q, w): what the forward returned
    lse: Tensor,  # (b, h, Q)
    selected: Tensor,
    cell: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_group: Tensor | None,
    key_group: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias."""
    grads = _zeros(query, key, value, bias)
    tables = selected, cell, query_time, key_time, query_group, key_group
    problem = _Far(query, key, value, bias, *tables, scale)
    rows = [problem.by_row(x) for x in (grad_out, grad_lse, out, lse)]
    grad_query = problem.by_row(grads[0])
    grad_key, grad_value, grad_bias = (x.flatten(0, 1) for x in grads[1:])
    blocks = key.shape[2]
    with without_autocast(query):
        for tile in problem.tiles():
            g, g_lse, o, norm = (x[tile] for x in rows)
            q, k, v, b = problem.features(tile)
            norm = norm.masked_fill(norm == -torch.inf, 0)[..., None]
            weights = problem.logits(tile, q, k, b).sub_(norm).exp_()
            # An output that is not finite and has no gradient sends none.
            mean = torch.where(g == 0, 0, g * o).sum(dim=-1) if problem.unsafe else (g * o).sum(-1)
            slope = torch.bmm(g, v.mT)  # by the weights, then by the logits
            slope.sub_((mean - g_lse)[..., None]).mul_(weights)
            grad_query[tile] = torch.bmm(slope, k).mul_(scale)
            grad_key[tile[0]] += torch.bmm(slope.mT, q)[:, :blocks].mul_(scale)
            grad_value[tile[0]] += torch.bmm(weights.mT, g)[:, :blocks]
            grad_bias[tile[0]] += slope.sum(dim=1)[:, :blocks]
    return grads


@far_chunked_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    selected: Tensor,
    cell: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    query_group: Tensor | None,
    key_group: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _zeros(query, key, value, bias)


def _zeros(*xs: Tensor) -> Any:
    return tuple(x.new_zeros(x.shape) for x in xs)


Tile = tuple[slice, slice]  # of pairs of batch and key head, and of their rows


class _Far:
    """The flattened problem: a row for each query of each head that shares a key head.

    One more block, which does not exist, is what an empty slot selects.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        selected: Tensor,
        cell: Tensor,
        query_time: Tensor | None,
        key_time: Tensor | None,
        query_group: Tensor | None,
        key_group: Tensor | None,
        scale: float,
    ) -> None:
        (_, heads, _, _), (batch, key_heads, _, _) = query.shape, key.shape
        self.pairs, self.sharing = batch * key_heads, heads // key_heads
        self.query = self.by_row(query)
        self.key, self.value, self.bias = (
            _one_more_block(key.flatten(0, 1)),
            _one_more_block(value.flatten(0, 1)),
            _one_more_block(bias.flatten(0, 1), -torch.inf),
        )
        self.selected, self.row = self._selected(selected, heads, key_heads, cell)
        self.query_time, self.query_group = (
            _tiled(query_time, self.sharing),
            _tiled(query_group, self.sharing),
        )
        self.key_time, self.key_group = _padded(key_time), _padded(key_group)
        self.scale = scale
        # Where what is hidden is not finite, a weight of zero does not hide it: 0 NaN is NaN.
        # A GPU is not asked; it would be waited for.
        hides = key_time is not None or key_group is not None
        self.unsafe = hides and (key.is_cuda or not _all_finite(key, value))
        self.no_key = self.no_value = None
        if self.unsafe:
            self.no_key, self.no_value = ~self.key.isfinite().all(dim=-1), ~self.value.isfinite()
            self.key = self.key.masked_fill(~self.key.isfinite(), 0)
            self.value = self.value.masked_fill(self.no_value, 0)

    def by_row(self, x: Tensor) -> Tensor:  # (b, h, Q, ...) -> (b hk, g Q, ...)
        return x.reshape(self.pairs, self.sharing * x.shape[2], *x.shape[3:])

    def _selected(
        self, selected: Tensor, heads: int, key_heads: int, cell: Tensor
    ) -> tuple[Tensor, Tensor]:  # (b hk, rows of a table, K), (g Q,)
        """The selections of each pair, and which one each row has."""
        cells, sharing = selected.shape[2], self.sharing
        row = cell.repeat(sharing)
        if selected.shape[1] == heads:
            first = cells * torch.arange(sharing, device=cell.device)
            row = row + first.repeat_interleave(len(cell))
            return selected.reshape(self.pairs, sharing * cells, selected.shape[3]), row
        selected = selected.expand(-1, key_heads, -1, -1)
        return selected.reshape(self.pairs, cells, selected.shape[3]), row

    def tiles(self) -> Iterator[Tile]:
        """Cut pairs and rows so that the logits of each tile fit the budget."""
        rows, blocks = self.query.shape[1], self.key.shape[1]
        budget = _CHUNK["cuda" if self.query.is_cuda else "cpu"]
        step = min(rows, max(1, budget // blocks))
        pairs = max(1, budget // max(1, rows * blocks))
        for pair in range(0, self.pairs, pairs):
            for row in range(0, rows, max(1, step)):
                yield slice(pair, pair + pairs), slice(row, row + step)

    def features(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query (l, r, d), key (l, B + 1, d), value (l, B + 1, w) and bias (l, B + 1) of a tile."""
        pair = tile[0]
        return self.query[tile], self.key[pair], self.value[pair], self.bias[pair]

    def logits(self, tile: Tile, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """(l, r, B + 1), -inf for what is not in the far field. Differentiable."""
        pair, row = tile
        logits = torch.baddbmm(bias[:, None], query, key.mT, alpha=self.scale)
        if self.no_key is not None:
            logits.masked_fill_(self.no_key[pair, None], torch.nan)
            logits.masked_fill_(bias[:, None] == -torch.inf, -torch.inf)
        if self.query_time is not None and self.key_time is not None:
            logits.masked_fill_(self.key_time > self.query_time[row, None], -torch.inf)
        if self.query_group is not None and self.key_group is not None:
            logits.masked_fill_(self.key_group != self.query_group[row, None], -torch.inf)
        taken = self.selected[pair].index_select(1, self.row[row]).long()
        return logits.scatter_(2, taken % key.shape[1], -torch.inf)

    def answer(
        self, tile: Tile, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:  # (l, r, w), (l, r)
        """The mean value and the log-sum-exp; 0 and -inf for who sees nothing. Differentiable."""
        logits = self.logits(tile, query, key, bias)
        top = logits.detach().amax(dim=-1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0)
        weights = logits.sub_(top).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        blind = total == 0
        total = total.masked_fill(blind, 1)
        out = torch.bmm(weights, value) / total
        if self.no_value is not None:
            reads = torch.bmm((weights > 0).to(out.dtype), self.no_value[tile[0]].to(out.dtype))
            out = out.masked_fill(reads > 0, torch.nan)
        return out, (top + total.log()).masked_fill(blind, -torch.inf)[..., 0]


def _one_more_block(x: Tensor, value: float = 0) -> Tensor:
    return F.pad(x, (0, 1) if x.ndim == 2 else (0, 0, 0, 1), value=value)


def _padded(x: Tensor | None) -> Tensor | None:
    return None if x is None else F.pad(x, (0, 1))


def _tiled(x: Tensor | None, times: int) -> Tensor | None:
    return None if x is None else x.repeat(times)


def _all_finite(*xs: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in xs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output, *inputs[4:-1])
    ctx.scale = inputs[-1]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, bias, *rest = ctx.saved_tensors
    grads = far_chunked_backward(query, key, value, bias, grad_out, grad_lse, *rest, ctx.scale)
    return *grads, *[None] * 7


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6], *inputs[8:-1])
    ctx.scale = inputs[-1]


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, tile by tile."""
    query, key, value, bias, grad_out, grad_lse, *rest = ctx.saved_tensors
    selected, cell, *seen = rest
    problem = _Far(
        query, key, value, bias, selected, cell, seen[0], seen[1], seen[2], seen[3], ctx.scale
    )
    second = _zeros(query, key, value, bias, grad_out, grad_lse)
    by_row = [problem.by_row(x) for x in (second[0], *second[4:])]
    by_key = [x.flatten(0, 1) for x in second[1:4]]
    along_query = problem.by_row(cotangents[0])
    along = [x.flatten(0, 1) for x in cotangents[1:]]
    flows = problem.by_row(grad_out), problem.by_row(grad_lse)
    for tile in problem.tiles():
        weights = along_query[tile], *(_one_more_block(x[tile[0]]) for x in along)
        parts = _second(problem, tile, [x[tile] for x in flows], weights)
        for total, part in zip(by_row, (parts[0], *parts[4:])):
            total[tile] = part
        for total, part in zip(by_key, parts[1:4]):
            total[tile[0]] += part[:, : total.shape[1]]
    return *second, *[None] * 9


def _second(
    problem: _Far, tile: Tile, flows: list[Tensor], weights: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Derivatives by the features and by the gradients of the outputs."""
    with torch.enable_grad(), without_autocast(flows[0]):
        leaves = [x.detach().requires_grad_() for x in problem.features(tile)]
        given = [x.detach().requires_grad_() for x in flows]
        outputs = problem.answer(tile, *leaves)
        grads = torch.autograd.grad(outputs, leaves, given, create_graph=True)
        return torch.autograd.grad(grads, [*leaves, *given], weights, materialize_grads=True)


far_chunked.register_autograd(_backward, setup_context=_save)
far_chunked_backward.register_autograd(_backward_twice, setup_context=_save_backward)
far_chunked.register_vmap(fold_into_batch(far_chunked, batched=5))
far_chunked_backward.register_vmap(fold_into_batch(far_chunked_backward, batched=9))
