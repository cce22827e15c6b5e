"""The far field in bounded memory: `far_field.literal`, some queries at a time.

A chunk of queries meets all blocks and is forgotten; the backward computes its weights again. The
second derivative differentiates the plain formula, chunk by chunk.
"""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    no_tangents,
    without_autocast,
)
from ndgpa.attention.far_field import FarKeys, FarQueries
from ndgpa.attention.far_rows import FarRows, Features, Inputs, one_more_block


def chunked(queries: FarQueries, keys: FarKeys, selected: Tensor) -> tuple[Tensor, Tensor]:
    """As `literal`, with the memory of one chunk beside the inputs and outputs."""
    no_tangents("torch", queries.query, keys.key, keys.value)
    return far_chunked(
        queries.query.to(keys.key.dtype),
        keys.key,
        keys.value,
        keys.bias,
        selected,
        queries.cell,
        queries.time,
        keys.time,
        queries.group,
        keys.group,
        keys.scale,
    )


@torch.library.custom_op("ndgpa::far_chunked", mutates_args=())
def far_chunked(
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
) -> tuple[Tensor, Tensor]:  # (b, h, Q, w), (b, h, Q)
    """Output and log-sum-exp. Arguments as in `Inputs`."""
    tables = selected, cell, query_time, key_time, query_group, key_group
    problem = FarRows(Inputs(query, key, value, bias, *tables, scale))
    out, lse = _empty_out(query, value)
    flat_out, flat_lse = problem.by_row(out), problem.by_row(lse)
    with without_autocast(query):
        for tile in problem.tiles():
            flat_out[tile], flat_lse[tile] = problem.attend(tile, problem.features(tile))
    return out, lse


@far_chunked.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _empty_out(query, value)


def _empty_out(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    shape = query.shape[:3]
    return value.new_empty(*shape, value.shape[3]), query.new_empty(shape)


@torch.library.custom_op("ndgpa::far_chunked_backward", mutates_args=())
def far_chunked_backward(
    grad_out: Tensor,  # (b, h, Q, w)
    grad_lse: Tensor,  # (b, h, Q)
    out: Tensor,  # (b, h, Q, w)
    lse: Tensor,  # (b, h, Q)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias."""
    grads = _zeros(query, key, value, bias)
    tables = selected, cell, query_time, key_time, query_group, key_group
    problem = FarRows(Inputs(query, key, value, bias, *tables, scale))
    rows = [problem.by_row(x) for x in (grad_out, grad_lse, out, lse)]
    grad_query = problem.by_row(grads[0])
    by_key = [x.flatten(0, 1) for x in grads[1:]]
    with without_autocast(query):
        for pairs, tiles in problem.tiles_by_pairs():
            totals = [x.new_zeros(x.shape) for x in problem.features((pairs, slice(0)))[1:]]
            for tile in tiles:
                given = [x[tile] for x in rows]
                grad_query[tile] = problem.differentiate(tile, *given, *totals)
            for grad, total in zip(by_key, totals):
                grad[pairs] = total[:, :-1]
    return grads


@far_chunked_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _zeros(query, key, value, bias)


def _zeros(*xs: Tensor) -> Any:
    return tuple(x.new_zeros(x.shape) for x in xs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    keep_inputs(ctx, (*output, *inputs))


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, bias = far_chunked_backward(grad_out, grad_lse, *kept_inputs(ctx))
    return gradients(Inputs, query=query, key=key, value=value, bias=bias)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, (*inputs[:2], *inputs[4:]))  # the formula makes out and lse again


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, *inputs = kept_inputs(ctx)
    by_out, by_lse, *by_inputs = backward_twice(grad_out, grad_lse, Inputs(*inputs), cotangents)
    return by_out, by_lse, None, None, *by_inputs


def backward_twice(
    grad_out: Tensor, grad_lse: Tensor, given: Inputs, cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, tile by tile.

    Returns:
        The gradients of `grad_out`, `grad_lse` and each of the inputs.
    """
    wider = given.query.to(given.key.dtype), cotangents[0].to(given.key.dtype)
    given, cotangents = given._replace(query=wider[0]), (wider[1], *cotangents[1:])
    problem = FarRows(given)
    second = _zeros(grad_out, grad_lse, *given[:4])
    by_row = [problem.by_row(x) for x in second[:3]]
    by_key = [x.flatten(0, 1) for x in second[3:]]
    along_query = problem.by_row(cotangents[0])
    along = [one_more_block(x.flatten(0, 1)) for x in cotangents[1:]]
    flows = problem.by_row(grad_out), problem.by_row(grad_lse)
    for pairs, tiles in problem.tiles_by_pairs():
        totals = [x.new_zeros(x.shape) for x in problem.features((pairs, slice(0)))[1:]]
        for tile in tiles:
            by_flows, by_features = differentiate_gradient(
                partial(problem.attend, tile),
                problem.features(tile),
                Features._fields,
                [x[tile] for x in flows],
                (along_query[tile], *(x[pairs] for x in along)),
            )
            for total, row in zip(by_row, (*by_flows, by_features[0]), strict=True):
                total[tile] = _given(row)
            for total, table in zip(totals, by_features[1:], strict=True):
                total += _given(table)
        for total, table in zip(by_key, totals):
            total[pairs] = table[:, :-1]
    by_out, by_lse, *by_inputs = second
    named = dict(zip(Features._fields, by_inputs, strict=True))
    return by_out, by_lse, *gradients(Inputs, **named)


def _given(x: Tensor | None) -> Tensor:
    assert x is not None  # everything has an influence on everything
    return x


far_chunked.register_autograd(_backward, setup_context=_save)
far_chunked_backward.register_autograd(_backward_twice, setup_context=_save_backward)
far_chunked.register_vmap(fold_into_batch(far_chunked, batched=5))
far_chunked_backward.register_vmap(fold_into_batch(far_chunked_backward, batched=9))


@count_products("far_chunked")
def _(*inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention(far_pairs(given), given.query[3], given.value[3])


@count_products("far_chunked_backward")
def _(grad_out: Any, grad_lse: Any, out: Any, lse: Any, *inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention_backward(far_pairs(given), given.query[3], given.value[3])


def far_pairs(given: Any) -> int:
    """Queries by blocks, and by the one that an empty slot selects, given shapes."""
    return prod(given.query[:3]) * (given.key[2] + 1)
