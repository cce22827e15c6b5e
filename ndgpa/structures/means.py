"""Sums over blocks of the sites that are seen: on a GPU in one pass, elsewhere by the structure."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import fold_into_batch, has_triton
from ndgpa.structures.base import SpatialStructure

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 1024


def seen_sums(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    seen: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h B d"]:
    """Sum the features over the seen sites of each block; the others are not read."""
    if has_triton(x) and x.dtype in _DTYPES and x.shape[3] <= _WIDEST:
        return block_sums(x, seen, structure.blocks, structure.block_of_site)
    if seen is not None:
        x = x.masked_fill(~seen[:, None, :, None], 0)
    return structure.block_sums(x)


@torch.library.custom_op("ndgpa::block_sums", mutates_args=())
def block_sums(
    x: Tensor,  # (b, h, n, d)
    seen: Tensor | None,  # (b, n) bool
    blocks: Tensor,  # (B, R) int64, -1 for an empty place
    block_of_site: Tensor,  # (n,) int64
) -> Tensor:  # (b, h, B, d) float32
    from ndgpa.structures.triton_means import sum_blocks

    out = _empty(x, blocks)
    sum_blocks(
        x if x.stride(3) == 1 else x.contiguous(),
        None if seen is None else seen.contiguous(),
        blocks.contiguous(),
        out,
    )
    return out


@block_sums.register_fake
def _(x: Tensor, seen: Tensor | None, blocks: Tensor, block_of_site: Tensor) -> Tensor:
    return _empty(x, blocks)


def _empty(x: Tensor, blocks: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], blocks.shape[0], x.shape[3], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, seen, _, block_of_site = inputs
    ctx.save_for_backward(seen, block_of_site)
    ctx.dtype = x.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    seen, block_of_site = ctx.saved_tensors
    grad = grad.index_select(2, block_of_site).to(ctx.dtype)
    if seen is not None:
        grad = grad.masked_fill(~seen[:, None, :, None], 0)
    return grad, None, None, None


block_sums.register_autograd(_backward, setup_context=_save)
block_sums.register_vmap(fold_into_batch(block_sums, batched=2))
