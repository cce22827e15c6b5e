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
from ndgpa._ops import (
    differentiate_gradient,
    fold_into_batch,
    gradients,
    has_triton,
    keep_inputs,
    kept_inputs,
    no_tangents,
    side_by_side,
)
from ndgpa.attention.chunked import attend_from_cells, with_a_slot
from ndgpa.attention.triton.inputs import Inputs
from ndgpa.problem import Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import is_full, take_sites

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
        key_bias = with_non_finite(key, value, key_bias)
    out, lse, _ = attend_triton(
        query,
        key,
        value,
        slot_bias=None if selection.bias is None else selection.bias.float(),
        key_bias=None if key_bias is None else key_bias.float(),
        blocks=selection.blocks,
        cell_sites=structure.cell_sites,
        key_sites=key_structure.blocks if key_sites is None else key_sites,
        query_time=structure.time if causal else None,
        key_time=key_structure.time if causal else None,
        scale=scale,
        partition=key_sites is None,
        even=selection.full and structure.is_even and _is_even(key_structure, key_sites),
    )
    return out, lse


def _is_even(key_structure: SpatialStructure, key_sites: Tensor | None) -> bool:
    """Whether no place is empty in what is read of the keys, as far as it is known at no cost."""
    return key_structure.is_even if key_sites is None else is_full(key_sites)


def is_usable(query: Tensor, value: Tensor) -> bool:
    """Whether `backend=None` means this one."""
    return (
        has_triton(query)
        and query.dtype in DTYPES
        and max(query.shape[3], value.shape[3]) <= WIDEST
    )


@torch.library.custom_op("ndgpa::attend_triton", mutates_args=())
def attend_triton(
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
    even: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # (b, h, n, dv), (b, h, n) float32, (b, 2, h, n) float32
    """Output, log-sum-exp, and what the backward normalises by: as exact as the softmax itself.

    Arguments as in `Inputs`.
    """
    from ndgpa.attention.triton.forward import forward

    tables = (slot_bias, key_bias, blocks, cell_sites, key_sites, query_time, key_time)
    out, lse, norm = _empty_out(query, value)
    with torch.cuda.device_of(query):
        given = Inputs(query, key, value, *tables, scale, partition, even).laid_out()
        forward(given, out, lse, norm)
    return out, lse, norm


@attend_triton.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return _empty_out(query, value)


@torch.library.custom_op("ndgpa::attend_triton_backward", mutates_args=())
def attend_triton_backward(
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    out: Tensor,  # (b, h, n, dv)
    norm: Tensor,  # (b, 2, h, n)
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
    even: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, slot_bias and key_bias (the last two empty where None)."""
    from ndgpa.attention.triton.backward_keys import backward_keys
    from ndgpa.attention.triton.backward_queries import backward_queries

    tables = (slot_bias, key_bias, blocks, cell_sites, key_sites, query_time, key_time)
    grad_out, out = side_by_side(grad_out), side_by_side(out)
    norm, grad_lse = norm.contiguous(), grad_lse.contiguous()
    with torch.cuda.device_of(query):
        given = Inputs(query, key, value, *tables, scale, partition, even).laid_out()
        grads = _empty_grads(given.query, given.key, given.value, slot_bias, key_bias)
        mean = torch.empty_like(grad_lse)
        grad_slot = backward_queries(
            given,
            grad_out=grad_out,
            grad_lse=grad_lse,
            out=out,
            norm=norm,
            grad_query=grads[0],
            mean=mean,
        )
        backward_keys(
            given,
            grad_out=grad_out,
            norm=norm,
            mean=mean,
            grad_key=grads[1],
            grad_value=grads[2],
            grad_bias=None if key_bias is None else grads[4],
        )
    return *grads[:3], grads[3] if grad_slot is None else grad_slot, grads[4]


@attend_triton_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, key, value = map(side_by_side, (query, key, value))
    return _empty_grads(query, key, value, slot_bias, key_bias)


def with_non_finite(key: Tensor, value: Tensor, key_bias: Tensor | None) -> Tensor:
    """The bias of each key (b, hk, n_k), NaN for one that is not finite or whose value is not.

    The future has a weight of 0, and 0 NaN is NaN: the kernels do not load such a key, and its bias
    makes the queries that see it NaN. A key that is hidden stays hidden. One pass over both, of
    which nothing but this is kept.
    """
    with torch.no_grad():
        sizes = [torch.linalg.vector_norm(x, torch.inf, dim=3) for x in (key, value)]
        bad = ~(sizes[0].isfinite() & sizes[1].isfinite())
    if key_bias is None:
        key_bias = torch.zeros_like(bad, dtype=torch.float32)
    return key_bias.float().masked_fill(bad & (key_bias != -torch.inf), torch.nan)


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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    out, _, norm = output
    keep_inputs(ctx, (out, norm, *inputs))


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, norm, *rest = kept_inputs(ctx)
    given = Inputs(*rest)
    grads = attend_triton_backward(grad_out, grad_lse, out, norm, *given)
    query, key, value, slot, bias = grads
    return gradients(
        Inputs,
        query=query,
        key=key,
        value=value,
        slot_bias=None if given.slot_bias is None else slot,
        key_bias=None if given.key_bias is None else bias,
    )


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the `torch` backend; out and norm are functions of the rest."""
    grad_out, grad_lse, _, _, *given = kept_inputs(ctx)
    names = ("query", "key", "value", "slot_bias", "key_bias")
    by_grads, by_inputs = differentiate_gradient(
        _attend_in_torch, Inputs(*given), names, [grad_out, grad_lse], cotangents
    )
    return *by_grads, None, None, *by_inputs


def _attend_in_torch(given: Inputs) -> tuple[Tensor, Tensor]:
    """What the kernels compute, from the same tables."""
    cell_sites, key_sites = given.cell_sites, given.key_sites
    query_time, key_time, key_bias = given.query_time, given.key_time, given.key_bias
    if query_time is not None and key_time is not None:
        query_time = query_time[cell_sites.clamp(min=0)]
        key_time = key_time[key_sites.clamp(min=0)]
    if key_bias is None:
        key_bias = given.key.new_zeros(given.key.shape[:3], dtype=torch.float32)
    hidden = (key_bias == -torch.inf)[..., None]
    bias = take_sites(key_bias[..., None], key_sites)[..., 0]
    out, lse = attend_from_cells(
        take_sites(given.query, cell_sites),
        take_sites(given.key.masked_fill(hidden, 0), key_sites),
        take_sites(given.value.masked_fill(hidden, 0), key_sites),
        Selection(given.blocks, given.slot_bias),
        given.scale,
        key_bias=bias.masked_fill(key_sites < 0, -torch.inf),
        query_time=query_time,
        key_time=key_time,
    )
    count = given.query.shape[2]
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
attend_triton_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
attend_triton.register_vmap(fold_into_batch(attend_triton, batched=6))
attend_triton_backward.register_vmap(fold_into_batch(attend_triton_backward, batched=10))


@count_products("attend_triton")
def _(*inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention(_pairs(given), given.query[3], given.value[3])


@count_products("attend_triton_backward")
def _(grad_out: Any, grad_lse: Any, out: Any, norm: Any, *inputs: Any, **_: Any) -> int:
    given: Any = Inputs(*inputs)  # of shapes
    return attention_backward(_pairs(given), given.query[3], given.value[3])


def _pairs(given: Any) -> int:
    return pairs_of_tables(given.query[:2], given.cell_sites, given.blocks[3], given.key_sites)


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
