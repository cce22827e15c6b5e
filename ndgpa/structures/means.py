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
    count = seen_counts(structure, x, seen)
    return seen_sums(structure, x, seen) / count.clamp(min=1)[:, None, :, None], count


def seen_counts(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    seen: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "#b B"]:
    """Count the seen sites of each block, in float32 or the dtype of x if that is wider."""
    if seen is None:
        return structure.block_sizes.to(wide(x))[None]
    return structure.block_sums(seen[..., None].to(wide(x)))[..., 0]


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


def in_two(means: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2 d"]:
    """Split float32 means into two parts of bfloat16 whose sum they are to 2^-17: high and low.

    Matrix units multiply the parts at the rate of 16 bit: of four products three are enough.
    """
    high = means.bfloat16()
    return torch.stack([high, (means - high.float()).bfloat16()], dim=-2)


def whole(means: Tensor) -> Tensor:
    """Undo `in_two`; means in one part stay as they are."""
    return means.float().sum(dim=-2) if means.dtype == torch.bfloat16 else means


@torch.library.custom_op("ndgpa::means_in_two", mutates_args=())
def means_in_two(
    x: Tensor,  # (b, h, n, d) of 16 bit
    seen: Tensor | None,  # (b, n) bool
    rows: Tensor,  # (B, R) int64, -1 for an empty place
    even: bool,  # there is none
) -> Tensor:  # (b, h, B, 2, d) bfloat16
    """Average the features over the seen sites of each row, as `in_two`; no derivative."""
    from ndgpa.structures.triton_means import sum_blocks

    out = _empty_in_two(x, rows)
    seen = None if seen is None else seen.contiguous()
    sum_blocks(x if x.stride(3) == 1 else x.contiguous(), seen, rows.contiguous(), out, even)
    return out


@means_in_two.register_fake
def _(x: Tensor, seen: Tensor | None, rows: Tensor, even: bool) -> Tensor:
    return _empty_in_two(x, rows)


def _empty_in_two(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], rows.shape[0], 2, x.shape[3], dtype=torch.bfloat16)


means_in_two.register_vmap(fold_into_batch(means_in_two, batched=2))


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
