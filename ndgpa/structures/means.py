"""Sums and means over the seen sites of blocks: in one pass on a GPU, else by the structure."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._ops import fold_into_batch, has_triton, wide
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import take_sites

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 1024


def seen_means(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    seen: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h B d"], Float[Tensor, "#b B"]]:
    """Average the features over the seen sites of each block, 0 where there are none.

    Returns:
        The means and the number of seen sites, in float32 or wider.
    """
    count = structure.block_sizes.to(wide(x))[None]
    if seen is not None:
        count = structure.block_sums(seen[..., None].to(wide(x)))[..., 0]
    return seen_sums(structure, x, seen) / count.clamp(min=1)[:, None, :, None], count


def row_means(
    x: Float[Tensor, "b h n d"], rows: Int[Tensor, "B S"], seen: Bool[Tensor, "b n"] | None = None
) -> tuple[Float[Tensor, "b h B d"], Float[Tensor, "#b B"]]:
    """As `seen_means`, over the sites of the rows of any table, -1 in its empty places."""
    there = (rows >= 0)[None]
    if seen is not None:
        there = there & seen[:, rows.clamp(min=0)]
        x = x.masked_fill(~seen[:, None, :, None], 0)
    count = there.sum(dim=-1).to(wide(x))
    sums = take_sites(x, rows).sum(dim=-2, dtype=wide(x))
    return sums / count.clamp(min=1)[:, None, :, None], count


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
