"""The softmax mass of candidates, streamed: neither gathered keys nor logits are written.

Letters: b batch, h heads, hk key heads, hs selection heads, C cells, X parts of a cell's queries, W
candidates, B key blocks, S parts of a block, d features. A program has a cell of a selection head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.selection.triton_products import precision

MOST_PARTS, WIDEST = 64, 128  # of a block and of a feature that a tile holds
_LOG2_E = tl.constexpr(1.4426950408889634)


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether the kernel takes features of this dtype, width and number of parts."""
    return query.dtype == torch.float32 and query.shape[-1] <= WIDEST and key.shape[3] <= MOST_PARTS


@triton.jit
def _logits(
    b_query,  # (ROWS, PAD_D)
    p_key,
    p_bias,
    p_candidates,
    start,
    W,
    scale,
    S: tl.constexpr,
    PAD_S: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits in base 2 of a tile of candidates (ROWS, KEYS), and the biases of its keys (KEYS,)."""
    o_key = tl.arange(0, KEYS)
    o_candidate, o_part = start + o_key // PAD_S, o_key % PAD_S
    m_key = (o_candidate < W) & (o_part < S)
    b_id = tl.load(p_candidates + o_candidate, mask=m_key, other=-1)
    m_key = m_key & (b_id >= 0)
    o_row = b_id.to(tl.int64) * S + o_part
    o_feature = tl.arange(0, PAD_D)
    m = m_key[:, None] & (o_feature < D)[None, :]
    b_key = tl.load(p_key + o_row[:, None] * D + o_feature[None, :], mask=m, other=0.0)
    b_bias = tl.load(p_bias + o_row, mask=m_key, other=float("-inf"))
    b_s = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION) * scale
    b_s = (b_s + b_bias[None, :]) * _LOG2_E
    return tl.where((b_bias == float("-inf"))[None, :], float("-inf"), b_s), b_bias


@triton.jit
def second_look_kernel(
    p_query,  # (b, h, C, X, d), contiguous as all that follow
    p_key,  # (b, hk, B, S, d)
    p_bias,  # (b, hk, B, S)
    p_candidates,  # (b, hs, C, W) int32, -1 for none
    p_weight,  # (b, C, X)
    p_out,  # (b, hs, C, W), -inf
    C,
    B,
    W,
    X,
    scale,
    H: tl.constexpr,
    HK: tl.constexpr,
    HS: tl.constexpr,
    S: tl.constexpr,
    PAD_S: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,  # candidates of a tile
    PRECISION: tl.constexpr,
):
    KEYS: tl.constexpr = BLOCKS * PAD_S
    program = tl.program_id(0).to(tl.int64)
    cell, batch = program % C, program // C // HS
    first_head = program // C % HS * (H // HS)
    p_candidates += program * W
    p_out += program * W
    o_feature = tl.arange(0, PAD_D)
    for head in range(first_head, first_head + H // HS):
        space = batch * HK + head * HK // H
        p_keys, p_biases = p_key + space * B * S * D, p_bias + space * B * S
        p_asks = p_query + ((batch * H + head) * C + cell) * X * D
        for first in range(0, X, ROWS):
            # (ROWS,), (ROWS, PAD_D)
            o_row = first + tl.arange(0, ROWS)
            m_row = o_row < X
            m = m_row[:, None] & (o_feature < D)[None, :]
            b_query = tl.load(p_asks + o_row[:, None] * D + o_feature[None, :], mask=m, other=0.0)
            b_weight = tl.load(p_weight + (batch * C + cell) * X + o_row, mask=m_row, other=0.0)
            b_max = tl.full((ROWS,), float("-inf"), tl.float32)
            b_sum = tl.zeros((ROWS,), tl.float32)
            for start in range(0, W, BLOCKS):
                b_s, _ = _logits(
                    *(b_query, p_keys, p_biases, p_candidates, start, W, scale),
                    *(S, PAD_S, D, PAD_D, KEYS, PRECISION),
                )
                b_new = tl.maximum(b_max, tl.max(b_s, 1))
                b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
                b_sum = b_sum * tl.exp2(b_max - b_base)
                b_sum += tl.sum(tl.exp2(b_s - b_base[:, None]), 1)
                b_max = b_new
            b_lse = tl.where(b_sum == 0, 0.0, b_max + tl.log2(tl.where(b_sum == 0, 1.0, b_sum)))
            for start in range(0, W, BLOCKS):
                b_s, b_bias = _logits(
                    *(b_query, p_keys, p_biases, p_candidates, start, W, scale),
                    *(S, PAD_S, D, PAD_D, KEYS, PRECISION),
                )
                b_mass = tl.exp2(b_s - b_lse[:, None])
                b_mass = tl.where(b_mass == b_mass, b_mass, 0.0)  # no number takes no part
                b_mass = tl.sum(b_mass * b_weight[:, None], 0)
                # (BLOCKS,)
                b_total = tl.sum(tl.reshape(b_mass, (BLOCKS, PAD_S)), 1)
                b_there = tl.max(tl.reshape(b_bias, (BLOCKS, PAD_S)), 1) > float("-inf")
                o_out = start + tl.arange(0, BLOCKS)
                b_before = tl.load(p_out + o_out, mask=o_out < W, other=float("-inf"))
                b_after = tl.where(b_before == float("-inf"), 0.0, b_before) + b_total
                tl.store(p_out + o_out, tl.where(b_there, b_after, b_before), mask=o_out < W)
            tl.debug_barrier()  # what is added to next was written by other threads


@on_its_device
def write_mass(
    out: Tensor,  # (b, hs, C, W), written
    query: Tensor,  # (b, h, C, X, d) float32
    key: Tensor,  # (b, hk, B, S, d)
    bias: Tensor,  # (b, hk, B, S)
    candidates: Tensor,  # (b, hs, C, W) int32
    weight: Tensor,  # (b, C, X)
    scale: float,
) -> None:
    """Write the softmax mass of each candidate, summed over queries and heads; -inf for none."""
    out.fill_(-torch.inf)
    batch, heads, num_cells, queries, features = query.shape
    key_heads, blocks, parts = key.shape[1:4]
    sharers, width = candidates.shape[1], candidates.shape[3]
    padded = triton.next_power_of_2(parts)
    large = padded > 32 or features > 64
    if out.numel() == 0:
        return
    second_look_kernel[(batch * sharers * num_cells,)](
        query.contiguous(),
        key.contiguous(),
        bias.contiguous(),
        candidates.contiguous(),
        weight.contiguous(),
        out,
        num_cells,
        blocks,
        width,
        queries,
        scale,
        H=heads,
        HK=key_heads,
        HS=sharers,
        S=parts,
        PAD_S=padded,
        D=features,
        PAD_D=max(16, triton.next_power_of_2(features)),
        ROWS=min(max(16, triton.next_power_of_2(queries)), 32 if large else 64),
        BLOCKS=max(1, 32 // padded),
        PRECISION=precision(),
        num_warps=8 if large else 4,
        num_stages=2,
        enable_fp_fusion=True,
    )
