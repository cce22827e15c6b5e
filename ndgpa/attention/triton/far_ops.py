"""The far field of the `triton` backend: kernels as operators that autograd and vmap know.

Triton itself is imported when the first kernel runs.
"""

from typing import Any

import torch
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    no_tangents,
    side_by_side,
)
from ndgpa.attention.far_chunked import backward_twice, far_pairs
from ndgpa.attention.far_field import FarKeys, FarQueries
from ndgpa.attention.far_rows import Inputs
from ndgpa.attention.triton.inputs import LOG2_E
from ndgpa.attention.triton.ops import WIDEST, with_non_finite


def far_fused(queries: FarQueries, keys: FarKeys, selected: Tensor) -> tuple[Tensor, Tensor]:
    """As `literal`, in Triton kernels: products are made in the dtype of the call.

    As in the near field, where causal or in groups a key that is not finite, or whose value is not,
    makes the queries that see it NaN throughout.
    """
    query, bias = queries.query.to(queries.dtype), keys.bias
    no_tangents("triton", query, keys.key, keys.value)
    if queries.time is not None or queries.group is not None:
        bias = with_non_finite(keys.key, keys.value, bias)
    tables = selected, queries.cell, queries.time, keys.time
    grouped = queries.group is not None and keys.group is not None
    groups = (queries.group, keys.group) if grouped else (None, None)
    found = [
        far_triton(query, keys.key, value, bias, *tables, *groups, keys.scale)
        for value in keys.value.split(WIDEST, dim=-1)
    ]
    parts = [out for out, _, _ in found]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), found[0][1]


@torch.library.custom_op("ndgpa::far_triton", mutates_args=())
def far_triton(
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
) -> tuple[Tensor, Tensor, Tensor]:  # (b, h, Q, w), (b, h, Q), (b, h, Q, 2) float32
    """Output and log-sum-exp, and what the backward normalises by.

    Arguments as in `Inputs`, the query in any dtype, in which products are made.
    """
    from ndgpa.attention.triton.far_forward import far_forward

    tables = selected, cell, query_time, key_time, query_group, key_group
    given = _laid_out(Inputs(query, key, value, bias, *tables, scale))
    found = _empty_out(query, value)
    with torch.cuda.device_of(query):
        far_forward(given, *found)
    return found


@far_triton.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return _empty_out(query, value)


def _empty_out(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = query.shape[:3]
    return (
        value.new_empty(*shape, value.shape[3]),
        value.new_empty(shape),
        value.new_empty(*shape, 2),
    )


def _laid_out(given: Inputs) -> Inputs:
    """The same as the kernels read it: products in the dtype of the query, the bias in base 2."""
    dtype = given.query.dtype
    features = given.key.to(dtype).contiguous(), given.value.to(dtype).contiguous()
    tables = [x.contiguous() if isinstance(x, Tensor) else x for x in given[4:]]
    bias = (given.bias * LOG2_E).contiguous()
    return Inputs(side_by_side(given.query), *features, bias, *tables)  # type: ignore[arg-type]


@torch.library.custom_op("ndgpa::far_triton_backward", mutates_args=())
def far_triton_backward(
    grad_out: Tensor,  # (b, h, Q, w)
    grad_lse: Tensor,  # (b, h, Q)
    out: Tensor,  # (b, h, Q, w)
    norm: Tensor,  # (b, h, Q, 2)
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
    from ndgpa.attention.triton.far_backward import far_backward_keys, far_backward_queries

    tables = selected, cell, query_time, key_time, query_group, key_group
    given = _laid_out(Inputs(query, key, value, bias, *tables, scale))
    if grad_lse.numel() == 0 or bias.numel() == 0:
        return _zeros(query, key, value, bias)
    grad_out, norm = grad_out.to(query.dtype).contiguous(), norm.contiguous()
    grad_query, mean = torch.empty_like(query), torch.empty_like(grad_lse.contiguous())
    with torch.cuda.device_of(query):
        far_backward_queries(
            given,
            grad_out=grad_out,
            grad_lse=grad_lse.contiguous(),
            out=out.contiguous(),
            norm=norm,
            grad_query=grad_query,
            mean=mean,
        )
        return grad_query, *far_backward_keys(given, grad_out=grad_out, norm=norm, mean=mean)


@far_triton_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(query), *_zeros(key, value, bias)


def _zeros(*xs: Tensor) -> Any:
    return tuple(x.new_zeros(x.shape) for x in xs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    out, _, norm = output
    keep_inputs(ctx, (out, norm, *inputs))


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, bias = far_triton_backward(grad_out, grad_lse, *kept_inputs(ctx))
    return gradients(Inputs, query=query, key=key, value=value, bias=bias)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the `torch` backend; out and norm are functions of the rest."""
    grad_out, grad_lse, _, _, *given = kept_inputs(ctx)
    by_out, by_lse, *by_inputs = backward_twice(grad_out, grad_lse, Inputs(*given), cotangents)
    return by_out, by_lse, None, None, *by_inputs


far_triton.register_autograd(_backward, setup_context=_save)
far_triton_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
far_triton.register_vmap(fold_into_batch(far_triton, batched=5))
far_triton_backward.register_vmap(fold_into_batch(far_triton_backward, batched=9))


@count_products("far_triton")
def _(*inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention(far_pairs(given), given.query[3], given.value[3])


@count_products("far_triton_backward")
def _(grad_out: Any, grad_lse: Any, out: Any, norm: Any, *inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention_backward(far_pairs(given), given.query[3], given.value[3])
