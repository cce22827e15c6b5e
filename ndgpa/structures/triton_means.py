"""Sums and means over rows of sites in one pass: each site is read once, nothing else is."""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device


@triton.jit
def sum_blocks_kernel(
    p_x,  # (b, h, n, d)
    p_seen,  # (b, n) bool, contiguous, or None
    p_blocks,  # (B, R) int64
    p_out,  # (b, h, B, d) float32, sums; or (b, h, B, 2, d) bfloat16, means; contiguous
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
    EVEN: tl.constexpr,  # no place is empty, no tile partly
):
    tiles = tl.cdiv(B, BLOCKS)
    program = tl.program_id(0)
    b = (program // tiles // heads).to(tl.int64)
    h = program // tiles % heads
    # (BLOCKS,), (PAD_D,)
    o_block = (program % tiles * BLOCKS + tl.arange(0, BLOCKS)).to(tl.int64)
    o_feature = tl.arange(0, PAD_D)
    m_block = o_block < B
    m_feature = (o_feature < D)[None, :]
    p_x += b * s_x_b + h * s_x_h
    b_sum = tl.zeros((BLOCKS, PAD_D), tl.float32)
    b_count = tl.zeros((BLOCKS,), tl.float32)
    for place in range(0, R):
        if EVEN:
            o_site = tl.load(p_blocks + o_block * R + place)
            m_site = o_site >= 0
        else:
            o_site = tl.load(p_blocks + o_block * R + place, mask=m_block, other=-1)
            m_site = o_site >= 0
            o_site = tl.maximum(o_site, 0)
        if p_seen is not None:
            m_site = m_site & tl.load(p_seen + b * n + o_site, mask=m_site, other=0).to(tl.int1)
        # (BLOCKS, PAD_D)
        p_rows = p_x + o_site * s_x_n
        p = p_rows[:, None] + o_feature[None, :]
        if EVEN and p_seen is None and PAD_D == D:
            b_x = tl.load(p)
        else:
            b_x = tl.load(p, mask=m_site[:, None] & m_feature, other=0.0)
        b_sum += b_x.to(tl.float32)
        b_count += m_site.to(tl.float32)
    o_out = (b * heads + h) * B + o_block
    m = m_block[:, None] & m_feature
    if p_out.dtype.element_ty == tl.bfloat16:
        b_mean = b_sum / tl.maximum(b_count, 1.0)[:, None]
        b_high = b_mean.to(tl.bfloat16)
        p = p_out + o_out[:, None] * (2 * D) + o_feature[None, :]
        tl.store(p, b_high, mask=m)
        tl.store(p + D, (b_mean - b_high.to(tl.float32)).to(tl.bfloat16), mask=m)
    else:
        tl.store(p_out + o_out[:, None] * D + o_feature[None, :], b_sum, mask=m)


@on_its_device
def sum_blocks(
    x: Tensor,  # (b, h, n, d), features side by side
    seen: Tensor | None,  # (b, n) bool, contiguous
    blocks: Tensor,  # (B, R) int64, contiguous
    out: Tensor,  # (b, h, B, d) float32, sums; or (b, h, B, 2, d) bfloat16, means; written
    even: bool = False,  # no place of `blocks` is empty
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
        EVEN=even and num_blocks % tile == 0,
        num_warps=4,
        enable_fp_fusion=True,
    )
