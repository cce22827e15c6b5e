"""Sums over blocks in one pass over the features: each site is read once, nothing else is."""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device


@triton.jit
def sum_blocks_kernel(
    p_x,  # (b, h, n, d)
    p_seen,  # (b, n) bool, contiguous, or None
    p_blocks,  # (B, R) int64
    p_out,  # (b, h, B, d) float32, contiguous
    s_x_b,
    s_x_h,
    s_x_n,
    heads,
    n,
    B,
    R,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    tiles = tl.cdiv(B, BLOCKS)
    program = tl.program_id(0).to(tl.int64)
    b = program // tiles // heads
    h = program // tiles % heads
    # (BLOCKS,), (PAD_D,)
    o_block = program % tiles * BLOCKS + tl.arange(0, BLOCKS)
    o_feature = tl.arange(0, PAD_D)
    m_block = o_block < B
    m_feature = (o_feature < D)[None, :]
    b_sum = tl.zeros((BLOCKS, PAD_D), tl.float32)
    for place in range(0, R):
        o_site = tl.load(p_blocks + o_block * R + place, mask=m_block, other=-1)
        m_site = o_site >= 0
        if p_seen is not None:
            m_site = m_site & tl.load(p_seen + b * n + o_site, mask=m_site, other=0).to(tl.int1)
        # (BLOCKS, PAD_D)
        p_rows = p_x + b * s_x_b + h * s_x_h + tl.maximum(o_site, 0) * s_x_n
        m = m_site[:, None] & m_feature
        b_sum += tl.load(p_rows[:, None] + o_feature[None, :], mask=m, other=0.0).to(tl.float32)
    p_rows = p_out + ((b * heads + h) * B + o_block) * D
    tl.store(p_rows[:, None] + o_feature[None, :], b_sum, mask=m_block[:, None] & m_feature)


@on_its_device
def sum_blocks(
    x: Tensor,  # (b, h, n, d), features side by side
    seen: Tensor | None,  # (b, n) bool, contiguous
    blocks: Tensor,  # (B, R) int64, contiguous
    out: Tensor,  # (b, h, B, d) float32, contiguous, written
) -> None:
    (batch, heads, n, d), (num_blocks, sites) = x.shape, blocks.shape
    width = max(triton.next_power_of_2(d), 16)
    tile = max(2048 // width, 1)
    programs = -(-num_blocks // tile) * heads * batch
    if programs == 0:
        return
    sum_blocks_kernel[(programs,)](
        x,
        seen,
        blocks,
        out,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        heads,
        n,
        num_blocks,
        sites,
        D=d,
        PAD_D=width,
        BLOCKS=tile,
        num_warps=4,
        enable_fp_fusion=True,
    )
