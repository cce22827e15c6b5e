"""The `triton` backend: kernels as operators that autograd, compilation and vmap know.

Triton itself is imported when the first kernel runs.
"""

import importlib.util
import os
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._flops import attention, attention_backward, count_products, pairs_of_tables
from ndgpa._ops import differentiate_gradient, fold_into_batch, has_triton, no_tangents
from ndgpa.attention.chunked import attend_from_cells, with_a_slot
from ndgpa.problem import Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import take_sites

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256


def fused(
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
    """As `reference`, in Triton kernels: nothing is gathered, laid out anew or held per pair.

    float32 products follow `torch.backends.cuda.matmul.fp32_precision` ("tf32" or exact). What it
    can compute is checked where it is picked.
    """
    no_tangents("triton", query, key, value)
    selection = with_a_slot(selection)
    if causal:
        key_bias = _spoilt(key, value, key_bias)
    slot_bias = None if selection.bias is None else selection.bias.float()
    out, lse, _ = attend_triton(
        query,
        key,
        value,
        slot_bias,
        None if key_bias is None else key_bias.float(),
        selection.blocks,
        structure.cell_sites,
        key_structure.blocks if key_sites is None else key_sites,
        structure.time if causal else None,
        key_structure.time if causal else None,
        scale,
        key_sites is None,
    )
    return out, lse


def is_usable(query: Tensor, value: Tensor) -> bool:
    """Whether `backend=None` means this one."""
    return (
        has_triton(query)
        and query.dtype in DTYPES
        and max(query.shape[3], value.shape[3]) <= WIDEST
    )


@torch.library.custom_op("ndgpa::attend_triton", mutates_args=())
def attend_triton(
    query: Tensor,  # (b, h, n, d)
    key: Tensor,  # (b, hk, n_k, d)
    value: Tensor,  # (b, hk, n_k, dv)
    slot_bias: Tensor | None,  # (b, hs, C, K) float32
    key_bias: Tensor | None,  # (b, hk, n_k) float32
    blocks: Tensor,  # (b, hs, C, K) int, -1 for an empty slot
    cell_sites: Tensor,  # (C, X) int64, -1 for an empty place
    key_sites: Tensor,  # (B, R) int64, -1 for an empty place
    query_time: Tensor | None,  # (n,) int64
    key_time: Tensor | None,  # (n_k,) int64
    scale: float,
    partition: bool = True,  # every site of the keys is in exactly one row of key_sites
) -> tuple[Tensor, Tensor, Tensor]:  # (b, h, n, dv), (b, h, n) float32, (b, 2, h, n) float32
    """Output, log-sum-exp, and what the backward normalises by: as exact as the softmax itself."""
    from ndgpa.attention.triton.forward import forward

    out, lse, norm = _empty_out(query, value)
    forward(
        _side_by_side(query),
        _side_by_side(key),
        _side_by_side(value),
        *_tables(blocks, slot_bias, key_bias, cell_sites, key_sites, query_time, key_time),
        out,
        lse,
        norm,
        scale,
    )
    return out, lse, norm


@attend_triton.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    blocks: Tensor,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
    partition: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_out(query, value)


@torch.library.custom_op("ndgpa::attend_triton_backward", mutates_args=())
def attend_triton_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    blocks: Tensor,
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    out: Tensor,  # (b, h, n, dv)
    norm: Tensor,  # (b, 2, h, n)
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
    partition: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, slot_bias and key_bias (the last two empty where None)."""
    from ndgpa.attention.triton.backward import backward_keys, backward_queries

    query, key, value, grad_out, out = map(_side_by_side, (query, key, value, grad_out, out))
    grads = _empty_grads(query, key, value, slot_bias, key_bias)
    given = _tables(blocks, slot_bias, key_bias, cell_sites, key_sites, query_time, key_time)
    norm, grad_lse = norm.contiguous(), grad_lse.contiguous()
    mean = torch.empty_like(grad_lse)
    grad_slot = backward_queries(
        query,
        key,
        value,
        grad_out,
        out,
        norm,
        grad_lse,
        *given,
        grad_query=grads[0],
        mean=mean,
        scale=scale,
    )
    grad_bias = None if key_bias is None else grads[4]
    backward_keys(
        query,
        key,
        value,
        grad_out,
        norm,
        mean,
        *given,
        grad_key=grads[1],
        grad_value=grads[2],
        grad_bias=grad_bias,
        scale=scale,
        partition=partition,
    )
    return *grads[:3], grads[3] if grad_slot is None else grad_slot, grads[4]


@attend_triton_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    blocks: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    norm: Tensor,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
    partition: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, key, value = map(_side_by_side, (query, key, value))
    return _empty_grads(query, key, value, slot_bias, key_bias)


def _spoilt(key: Tensor, value: Tensor, key_bias: Tensor | None) -> Tensor:  # (b, hk, n_k)
    """A bias of NaN for every key that is not finite, or whose value is not, unless it is hidden.

    The future has a weight of 0, and 0 NaN is NaN: the kernels do not load such a key, and its bias
    spoils the queries that see it. One pass over both, of which nothing but this is kept.
    """
    with torch.no_grad():
        sizes = [torch.linalg.vector_norm(x, torch.inf, dim=3) for x in (key, value)]
        spoilt = ~(sizes[0].isfinite() & sizes[1].isfinite())
    if key_bias is None:
        key_bias = torch.zeros_like(spoilt, dtype=torch.float32)
    return key_bias.float().masked_fill(spoilt & (key_bias != -torch.inf), torch.nan)


def _empty_grads(
    query: Tensor, key: Tensor, value: Tensor, slot_bias: Tensor | None, key_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(query),
        torch.empty_like(key),
        torch.empty_like(value),
        query.new_empty((0,) if slot_bias is None else slot_bias.shape, dtype=torch.float32),
        query.new_empty((0,) if key_bias is None else key_bias.shape, dtype=torch.float32),
    )


def _empty_out(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output in the memory order of the query, so that joining the heads copies nothing."""
    width = value.shape[3]
    if query.stride(1) < query.stride(2):  # heads side by side
        out = query.new_empty(*query.shape[:1], query.shape[2], query.shape[1], width)
        out = out.transpose(1, 2)
    else:
        out = query.new_empty(*query.shape[:3], width)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    return out, lse, lse.new_empty(lse.shape[0], 2, *lse.shape[1:])


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _tables(
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]:
    """All that the kernels read without strides."""
    return (
        blocks.int().contiguous(),
        _contiguous(slot_bias),
        _contiguous(key_bias),
        cell_sites.contiguous(),
        key_sites.contiguous(),
        _contiguous(query_time),
        _contiguous(key_time),
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    out, _, norm = output
    ctx.save_for_backward(*inputs[:6], out, norm, *inputs[6:10])
    ctx.options = inputs[10:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    given, rest = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    grads = attend_triton_backward(*given, grad_out, grad_lse, *rest, *ctx.options)
    slot = grads[3] if given[3] is not None else None
    bias = grads[4] if given[4] is not None else None
    return *grads[:3], slot, bias, *[None] * 7


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8], *inputs[10:14])
    ctx.scale = inputs[14]


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the `torch` backend; out and lse are functions of the rest."""
    query, key, value, slot, bias, blocks, grad_out, grad_lse, *tables = ctx.saved_tensors
    options = (*tables, ctx.scale)

    def formula(q: Tensor, k: Tensor, v: Tensor, slot: Any, bias: Any) -> tuple[Tensor, Tensor]:
        return _attend_in_torch(q, k, v, Selection(blocks, slot), bias, *options)

    given = [query, key, value, slot, bias]
    by_input, by_grads = differentiate_gradient(formula, given, [grad_out, grad_lse], cotangents)
    return *by_input, None, *by_grads, *[None] * 8


def _attend_in_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    selection: Selection,
    key_bias: Tensor | None,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What the kernels compute, from the same tables."""
    if query_time is not None and key_time is not None:
        query_time = query_time[cell_sites.clamp(min=0)]
        key_time = key_time[key_sites.clamp(min=0)]
    if key_bias is None:
        key_bias = key.new_zeros(key.shape[:3], dtype=torch.float32)
    hidden = (key_bias == -torch.inf)[..., None]
    out, lse = attend_from_cells(
        take_sites(query, cell_sites),
        take_sites(key.masked_fill(hidden, 0), key_sites),
        take_sites(value.masked_fill(hidden, 0), key_sites),
        selection,
        scale,
        key_bias=take_sites(key_bias[..., None], key_sites)[..., 0].masked_fill(
            key_sites < 0, -torch.inf
        ),
        query_time=query_time,
        key_time=key_time,
    )
    count = query.shape[2]
    return _by_site(out, cell_sites, count), _by_site(lse[..., None], cell_sites, count)[..., 0]


def _by_site(
    parts: Tensor, cell_sites: Tensor, count: int
) -> Tensor:  # (b, h, C, X, d) -> (b, h, n, d)
    """Put the cells together; what stands in empty places goes to a row that is dropped."""
    sites = cell_sites.flatten()
    rows = parts.new_zeros(*parts.shape[:2], count + 1, parts.shape[-1])
    rows = rows.index_copy(2, sites.where(sites >= 0, count), parts.flatten(2, 3))
    return rows[:, :, :count]


attend_triton.register_autograd(_backward, setup_context=_save)
attend_triton_backward.register_autograd(_backward_twice, setup_context=_save_gradient)
attend_triton.register_vmap(fold_into_batch(attend_triton, batched=6))
attend_triton_backward.register_vmap(fold_into_batch(attend_triton_backward, batched=10))


@count_products(attend_triton)
def _(
    query: Any,
    key: Any,
    value: Any,
    slot_bias: Any,
    key_bias: Any,
    blocks: Any,
    cell_sites: Any,
    key_sites: Any,
    *_: Any,
    **__: Any,
) -> int:
    pairs = pairs_of_tables(query[:2], cell_sites, blocks[3], key_sites)
    return attention(pairs, query[3], value[3])


@count_products(attend_triton_backward)
def _(
    query: Any,
    key: Any,
    value: Any,
    slot_bias: Any,
    key_bias: Any,
    blocks: Any,
    grad_out: Any,
    grad_lse: Any,
    out: Any,
    norm: Any,
    cell_sites: Any,
    key_sites: Any,
    *_: Any,
    **__: Any,
) -> int:
    pairs = pairs_of_tables(query[:2], cell_sites, blocks[3], key_sites)
    return attention_backward(pairs, query[3], value[3])


def check_call(query: Tensor, value: Tensor, dtypes: Iterable[torch.dtype], widest: int) -> None:
    """Asked before the first kernel: a GPU, or Triton's interpreter, and a dtype that it has."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("backend 'triton' needs the triton package, which is not installed")
    interpreted = not query.is_cuda
    if interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend 'triton' needs tensors on a GPU; query is on {query.device}: use "
            "backend='torch', or set TRITON_INTERPRET=1 before Python starts to test the kernels"
        )
    if query.dtype not in dtypes:
        raise TypeError(
            f"backend 'triton' computes in {arguments.listed(dtypes)}; got {query.dtype}"
        )
    if interpreted and query.dtype == torch.bfloat16:
        raise TypeError("Triton's interpreter does not multiply torch.bfloat16; use a GPU")
    for name, x in (("query", query), ("value", value)):
        if x.shape[3] > widest:
            raise ValueError(
                f"backend 'triton' takes heads of at most {widest} features; "
                f"{name} has {x.shape[3]}"
            )
