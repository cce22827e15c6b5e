"""The coarse branch: attention between block means, added to every site of a block."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndgpa._ops import is_transformed
from ndgpa.problem import Problem
from ndgpa.selection.coarse import coarse_level
from ndgpa.structures import SpatialStructure
from ndgpa.structures.means import seen_sums


def coarse_attention(
    problem: Problem, value: Float[Tensor, "b hk n_k dv"], sizes: bool = True
) -> Tensor:
    """Attend from block means to block means.

    Source: the compressed branches of NSA (Yuan et al. 2025) and VSA (Zhang et al. 2025).

    Args:
        problem: Queries and keys. If causal, the sites of a query block must share one time, and
            only key blocks that have ended by then are seen.
        sizes: Whether each key block is weighted by its seen sites.

    Returns:
        (b, h, B, dv), in the dtype of `value`; 0 for a block that sees nothing.
    """
    key_structure = problem.key_structure
    coarse = coarse_level(replace(problem, causal=False))
    means = seen_sums(key_structure, value, problem.key_mask)
    means = means / coarse.seen.clamp(min=1)[:, None, :, None]
    added = _mask(problem, coarse.query)
    if coarse.bias is not None:
        repeats = coarse.query.shape[1] // coarse.key.shape[1]
        added = added + coarse.bias.repeat_interleave(repeats, dim=1)[:, :, None]
    if coarse.log_size is not None:
        weight = coarse.log_size if sizes else coarse.log_size.clamp(max=0)  # sizes are at least 1
        added = added + weight[:, None, None]
    sees_none = (added == -torch.inf).all(dim=-1, keepdim=True)
    added = added.masked_fill(sees_none, 0)
    inputs = coarse.query, coarse.key, means.to(coarse.query.dtype), added
    with _differentiable(*inputs):
        out = F.scaled_dot_product_attention(
            *inputs,
            scale=coarse.scale,
            enable_gqa=coarse.key.shape[1] != coarse.query.shape[1],
        )
    return out.masked_fill(sees_none, 0).to(value.dtype)


def _differentiable(*xs: Tensor) -> AbstractContextManager[None]:
    """Choose torch's plain attention where a gradient is wanted, or vmap.

    Its fused kernels have no second derivative, and not all of them can be mapped.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in xs)
    if wanted or is_transformed():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _mask(problem: Problem, like: Tensor) -> Tensor:  # (1, 1, 1 or B, B_k)
    structure, key_structure = problem.structure, problem.key_structure
    seen: Bool[Tensor, "some B_k"] = torch.ones(
        1, key_structure.num_blocks, dtype=torch.bool, device=like.device
    )
    if structure.group is not None and key_structure.group is not None:
        seen = structure.group[:, None] == key_structure.group
    if problem.causal:
        first, last = structure.block_span
        _check_one_time(bool((first == last).all()))
        seen = seen & (first[:, None] >= key_structure.block_span[1])
    return like.new_zeros(()).where(seen, -torch.inf)[None, None]


def add_by_block(
    out: Float[Tensor, "b h n dv"],
    coarse: Float[Tensor, "b h B dv"],
    structure: SpatialStructure,
    gate: Float[Tensor, "b h n #dv"] | None = None,
) -> Float[Tensor, "b h n dv"]:
    """Add each block's features, times the gate, to its sites, a few sites at a time.

    This happens in place unless `out` needs a gradient, as a backend may have saved it for its own.
    """
    if torch.compiler.is_compiling() or is_transformed():
        spread = coarse.index_select(2, structure.block_of_site)
        return out + (spread if gate is None else gate * spread)
    return _AddByBlock.apply(out, coarse, gate, structure)


class _AddByBlock(torch.autograd.Function):
    """Allocate nothing of the size of `out` except, for a gradient, its copy."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, coarse: Tensor, gate: Tensor | None, structure: SpatialStructure
    ) -> Tensor:
        if ctx.needs_input_grad[0]:
            out = out.clone()
        else:
            ctx.mark_dirty(out)
        step = max(1, (1 << 20) // max(1, out.shape[:2].numel() * out.shape[3]))
        block = structure.block_of_site
        for begin in range(0, out.shape[2], step):
            sites = slice(begin, begin + step)
            part = coarse.index_select(2, block[sites])
            if gate is None:
                out[:, :, sites].add_(part)
            else:
                out[:, :, sites].addcmul_(part, gate[:, :, sites])
        ctx.save_for_backward(coarse, gate)
        ctx.structure = structure
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coarse, gate = ctx.saved_tensors
        by_gate, flow = None, grad
        if gate is not None:
            flow = grad * gate
            if ctx.needs_input_grad[2]:
                by_gate = grad * coarse.index_select(2, ctx.structure.block_of_site)
                by_gate = by_gate.sum_to_size(gate.shape)
        return grad, ctx.structure.block_sums(flow).to(coarse.dtype), by_gate, None


def _check_one_time(holds: bool) -> None:
    if not holds:
        raise ValueError(
            "a causal coarse branch needs query blocks within one time, such as one frame or one "
            "token; a mean over several times would look ahead"
        )
