"""The far field of each query: attention to block means that its cell did not select, forward.

One program holds some queries of a head and walks over all blocks. Softmax and
letters as in `forward` and `far_tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.far_rows import Inputs
from ndgpa.attention.triton.far_tiles import (
    SIZES,
    bits_of,
    far_constants,
    far_forward_tile,
    far_problem,
    logits_of_far,
    rows_of_far,
)
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    ceil_div,
    load_rows,
    rows_strides,
    store_rows,
    weights,
)

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit(do_not_specialize=SIZES)
def far_forward_kernel(
    p_query,  # (b, h, Q, d)
    p_key,  # (b, hk, B, d), contiguous as all that follow
    p_value,  # (b, hk, B, w)
    p_key_bias,  # (b, hk, B) float32, in base 2
    p_bits,  # (b, bit heads, C, W) int32
    p_cell,  # (Q,) int64
    p_query_time,  # (Q,) int64, or None
    p_key_time,  # (B,) int64, or None
    p_query_group,  # (Q,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_out,  # (b, h, Q, w) float32
    p_lse,  # (b, h, Q) float32
    p_norm,  # (b, h, Q, 2) float32: largest logit in base 2, and 1 / sum
    s_query_b,
    s_query_h,
    s_query_n,
    Q,
    B,
    C,
    H,
    tiles,
    words,
    bit_heads,
    scale,  # in base 2
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles = tl.cdiv(Q, ROWS)
    program = tl.program_id(0)
    head = (program // row_tiles).to(tl.int64)
    pair = head // GROUP
    o_row, m_row, p_words, b_now, b_group, b_query = rows_of_far(
        p_query, p_cell, p_bits, p_query_time, p_query_group, s_query_b, s_query_h, s_query_n,
        head, program % row_tiles, Q, C, H, words, bit_heads, D, PAD_D, ROWS,
    )  # fmt: skip
    b_max = tl.full((ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    b_out = tl.zeros((ROWS, PAD_DV), tl.float32)
    p_key += pair * B * D
    p_value += pair * B * DV
    for tile in range(0, tiles):
        # (KEYS,), (KEYS, PAD_D), (ROWS, KEYS)
        o_block, m_load, _, b_s = logits_of_far(
            b_query, p_words, b_now, b_group, m_row, p_key, p_key_bias, p_key_time, p_key_group,
            pair, tile, B, scale, D, PAD_D, KEYS, PRECISION,
        )  # fmt: skip
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_p = weights(b_s, scale, b_base[:, None], False)
        b_shrink = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        # (KEYS, PAD_DV)
        b_value = load_rows(p_value + o_block * DV, m_load, DV, PAD_DV)
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_p.to(b_value.dtype), b_value, b_out, input_precision=PRECISION)
        b_max = b_new_max
    m_masked = b_sum == 0
    b_sum = tl.where(m_masked, 1.0, b_sum)
    b_lse = (b_max + tl.log2(b_sum)) / _LOG2_E
    b_norm = tl.where(m_masked, 0.0, 1.0 / b_sum)
    o_far = head * Q + o_row
    store_rows(p_out + o_far * DV, b_out * b_norm[:, None], m_row, DV, PAD_DV)
    tl.store(p_lse + o_far, b_lse, mask=m_row)
    tl.store(p_norm + 2 * o_far, tl.where(m_masked, 0.0, b_max), mask=m_row)
    tl.store(p_norm + 2 * o_far + 1, b_norm, mask=m_row)


def far_forward(
    given: Inputs, out: Tensor, lse: Tensor, norm: Tensor, tile: Tile | None = None
) -> None:
    """Write output, log-sum-exp, and what the backward normalises by.

    Args:
        given: Key and value in the dtype of the query, the bias in base 2; all but the query
            contiguous.
        out, lse, norm: (b, h, Q, w), (b, h, Q) and (b, h, Q, 2) float32, contiguous.
    """
    (batch, heads, queries, _), blocks = given.query.shape, given.key.shape[2]
    if lse.numel() == 0:
        return
    tile = tile or far_forward_tile(far_problem(given))
    bits = bits_of(given, tile.keys)
    far_forward_kernel[(ceil_div(queries, tile.rows) * heads * batch,)](
        given.query,
        given.key,
        given.value,
        given.bias,
        bits,
        given.cell,
        given.query_time,
        given.key_time,
        given.query_group,
        given.key_group,
        out,
        lse,
        norm,
        *rows_strides(given.query),
        queries,
        blocks,
        bits.shape[2],
        heads,
        ceil_div(blocks, tile.keys),
        bits.shape[3],
        bits.shape[1],
        given.scale * LOG2_E,
        **far_constants(given, tile),
    )
