"""The far field of each query, backward: two kernels, of tiles of queries and of tiles of blocks.

    p_xj = exp(logit_xj - max_x) / sum_x   recomputed from the same products as in the forward
    w_x = grad_out_x . out_x - grad_lse_x
    g_xj = p_xj (grad_out_x . v_j - w_x)   the gradient of a logit

The first walks over the blocks and writes the gradients of queries, and w. The second walks over
the queries that share a key head, in SPLITS parts that are added up in order. Letters as in
`far_tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.far_rows import Inputs
from ndgpa.attention.triton.backward_queries import products_of_rows
from ndgpa.attention.triton.far_tiles import (
    SIZES,
    bits_of,
    far_constants,
    far_key_tile,
    far_problem,
    far_seen,
    keys_of_tile,
    logits_of_far,
    rows_of_far,
)
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    ceil_div,
    load_rows,
    logits,
    products,
    query_major_tile,
    rows_strides,
    store_rows,
    weights,
)

# Programs that fill a GPU: where there are fewer tiles of blocks, queries are split.
_PROGRAMS = 512


@triton.jit(do_not_specialize=SIZES)
def far_query_kernel(
    p_query,  # (b, h, Q, d)
    p_key,  # (b, hk, B, d), contiguous as all that follow but the gradient of the query
    p_value,  # (b, hk, B, w)
    p_key_bias,  # (b, hk, B) float32, in base 2
    p_grad_out,  # (b, h, Q, w), in the dtype of the query
    p_grad_lse,  # (b, h, Q) float32
    p_out,  # (b, h, Q, w) float32
    p_norm,  # (b, h, Q, 2) float32
    p_bits,  # (b, bit heads, C, W) int32
    p_cell,  # (Q,) int64
    p_query_time,  # (Q,) int64, or None
    p_key_time,  # (B,) int64, or None
    p_query_group,  # (Q,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_grad_query,  # (b, h, Q, d)
    p_mean,  # (b, h, Q) float32: w
    s_query_b,
    s_query_h,
    s_query_n,
    s_grad_query_b,
    s_grad_query_h,
    s_grad_query_n,
    Q,
    B,
    C,
    H,
    tiles,
    words,
    bit_heads,
    scale,
    scale_2,  # in base 2
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
    b_grad = tl.zeros((ROWS, PAD_D), tl.float32)
    p_key += pair * B * D
    p_value += pair * B * DV
    o_far = head * Q + o_row
    # (ROWS, PAD_DV)
    b_grad_out = load_rows(p_grad_out + o_far * DV, m_row, DV, PAD_DV)
    b_mean = products_of_rows(b_grad_out, load_rows(p_out + o_far * DV, m_row, DV, PAD_DV))
    b_mean -= tl.load(p_grad_lse + o_far, mask=m_row, other=0.0)
    tl.store(p_mean + o_far, b_mean, mask=m_row)
    b_max = tl.load(p_norm + 2 * o_far, mask=m_row, other=float("inf"))
    b_norm = tl.load(p_norm + 2 * o_far + 1, mask=m_row, other=0.0)
    for tile in range(0, tiles):
        # (KEYS,), (KEYS, PAD_D), (ROWS, KEYS)
        o_block, m_load, b_key, b_s = logits_of_far(
            b_query, p_words, b_now, b_group, m_row, p_key, p_key_bias, p_key_time, p_key_group,
            pair, tile, B, scale_2, D, PAD_D, KEYS, PRECISION,
        )  # fmt: skip
        b_p = weights(b_s, scale_2, b_max[:, None], False) * b_norm[:, None]
        b_value = load_rows(p_value + o_block * DV, m_load, DV, PAD_DV)
        b_slope = products(b_grad_out, b_value, None, None, PRECISION)
        b_g = b_p * (b_slope - b_mean[:, None])
        b_grad = tl.dot(b_g.to(b_key.dtype), b_key, b_grad, input_precision=PRECISION)
    p_grad_query += head // H * s_grad_query_b + head % H * s_grad_query_h
    store_rows(p_grad_query + o_row.to(tl.int64) * s_grad_query_n, b_grad * scale, m_row, D, PAD_D)


@triton.jit(do_not_specialize=SIZES)
def far_key_kernel(
    p_query,  # (b, h, Q, d)
    p_key,  # (b, hk, B, d), contiguous as all that follow
    p_value,  # (b, hk, B, w)
    p_key_bias,  # (b, hk, B) float32, in base 2
    p_grad_out,  # (b, h, Q, w), in the dtype of the query
    p_norm,  # (b, h, Q, 2) float32
    p_mean,  # (b, h, Q) float32: w
    p_bits,  # (b, bit heads, C, W) int32
    p_cell,  # (Q,) int64
    p_query_time,  # (Q,) int64, or None
    p_key_time,  # (B,) int64, or None
    p_query_group,  # (Q,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_grad_key,  # (splits, b, hk, B, d) float32
    p_grad_value,  # (splits, b, hk, B, w) float32
    p_grad_bias,  # (splits, b, hk, B) float32
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
    scale,
    scale_2,  # in base 2
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    pairs = tl.num_programs(0) // tiles
    tile = program % tiles
    pair = (program // tiles).to(tl.int64)
    # (KEYS,), (KEYS, PAD_D), (KEYS, PAD_DV)
    o_block, m_load, b_bias = keys_of_tile(p_key_bias, pair, tile, B, KEYS)
    b_key = load_rows(p_key + (pair * B + o_block) * D, m_load, D, PAD_D)
    b_value = load_rows(p_value + (pair * B + o_block) * DV, m_load, DV, PAD_DV)
    b_grad_key = tl.zeros((KEYS, PAD_D), tl.float32)
    b_grad_value = tl.zeros((KEYS, PAD_DV), tl.float32)
    b_grad_bias = tl.zeros((KEYS,), tl.float32)
    row_tiles = tl.cdiv(Q, ROWS)
    split, splits = tl.program_id(1), tl.num_programs(1)
    share = tl.cdiv(row_tiles * GROUP, splits)
    for i in range(split * share, tl.minimum(split * share + share, row_tiles * GROUP)):
        head = pair * GROUP + i // row_tiles
        o_row, m_row, p_words, b_now, b_group, b_query = rows_of_far(
            p_query, p_cell, p_bits, p_query_time, p_query_group, s_query_b, s_query_h, s_query_n,
            head, i % row_tiles, Q, C, H, words, bit_heads, D, PAD_D, ROWS,
        )  # fmt: skip
        o_far = head * Q + o_row
        b_max = tl.load(p_norm + 2 * o_far, mask=m_row, other=float("inf"))
        b_norm = tl.load(p_norm + 2 * o_far + 1, mask=m_row, other=0.0)
        b_mean = tl.load(p_mean + o_far, mask=m_row, other=0.0)
        # (ROWS, PAD_DV), (KEYS, ROWS)
        b_grad_out = load_rows(p_grad_out + o_far * DV, m_row, DV, PAD_DV)
        m_seen = far_seen(
            p_words, p_key_time, p_key_group, b_now, b_group, m_row, o_block, tile, KEYS, True
        )
        b_s = products(b_key, b_query, None, None, PRECISION)
        b_s = logits(b_s, scale_2, b_bias[:, None], m_seen, False)
        b_p = weights(b_s, scale_2, b_max[None, :], False) * b_norm[None, :]
        b_grad_value = tl.dot(
            b_p.to(b_grad_out.dtype), b_grad_out, b_grad_value, input_precision=PRECISION
        )
        b_slope = products(b_value, b_grad_out, None, None, PRECISION)
        b_g = b_p * (b_slope - b_mean[None, :])
        b_grad_key = tl.dot(b_g.to(b_query.dtype), b_query, b_grad_key, input_precision=PRECISION)
        b_grad_bias += tl.sum(b_g, 1)
    m_key = tile * KEYS + tl.arange(0, KEYS) < B
    o_out = (split * pairs + pair) * B + o_block
    store_rows(p_grad_key + o_out * D, b_grad_key * scale, m_key, D, PAD_D)
    store_rows(p_grad_value + o_out * DV, b_grad_value, m_key, DV, PAD_DV)
    tl.store(p_grad_bias + o_out, b_grad_bias, mask=m_key)


def far_backward_queries(
    given: Inputs,
    *,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    norm: Tensor,
    grad_query: Tensor,
    mean: Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the gradient of the queries, and w.

    Args:
        given: As for `far_forward`.
        grad_out: In the dtype of the query; contiguous as all that follow but `grad_query`.
        norm: That of the forward.
        mean: (b, h, Q) float32: w.
    """
    (batch, heads, queries, _), blocks = given.query.shape, given.key.shape[2]
    tile = tile or query_major_tile(far_problem(given))
    bits = bits_of(given, tile.keys)
    far_query_kernel[(ceil_div(queries, tile.rows) * heads * batch,)](
        given.query,
        given.key,
        given.value,
        given.bias,
        grad_out,
        grad_lse,
        out,
        norm,
        bits,
        given.cell,
        given.query_time,
        given.key_time,
        given.query_group,
        given.key_group,
        grad_query,
        mean,
        *rows_strides(given.query),
        *rows_strides(grad_query),
        queries,
        blocks,
        bits.shape[2],
        heads,
        ceil_div(blocks, tile.keys),
        bits.shape[3],
        bits.shape[1],
        given.scale,
        given.scale * LOG2_E,
        **far_constants(given, tile),
    )


def far_backward_keys(
    given: Inputs, *, grad_out: Tensor, norm: Tensor, mean: Tensor, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of key, value and bias, in float32.

    Args:
        given, grad_out, norm: As for `far_backward_queries`.
        mean: w, as that has written it.
    """
    (batch, heads, queries, _), (key_heads, blocks) = given.query.shape, given.key.shape[1:3]
    tile = tile or far_key_tile(far_problem(given))
    bits = bits_of(given, tile.keys)
    programs = ceil_div(blocks, tile.keys) * key_heads * batch
    splits = far_splits(programs, ceil_div(queries, tile.rows) * (heads // key_heads))
    grads = tuple(
        given.bias.new_empty(splits, *x.shape) for x in (given.key, given.value, given.bias)
    )
    far_key_kernel[(programs, splits)](
        given.query,
        given.key,
        given.value,
        given.bias,
        grad_out,
        norm,
        mean,
        bits,
        given.cell,
        given.query_time,
        given.key_time,
        given.query_group,
        given.key_group,
        *grads,
        *rows_strides(given.query),
        queries,
        blocks,
        bits.shape[2],
        heads,
        ceil_div(blocks, tile.keys),
        bits.shape[3],
        bits.shape[1],
        given.scale,
        given.scale * LOG2_E,
        **far_constants(given, tile),
    )
    grad_key, grad_value, grad_bias = (x[0] if splits == 1 else x.sum(dim=0) for x in grads)
    return grad_key, grad_value, grad_bias


def far_splits(programs: int, row_tiles: int) -> int:
    """How many parts the queries are cut into, none of them empty."""
    splits = max(1, min(_PROGRAMS // max(programs, 1), row_tiles))
    return ceil_div(row_tiles, ceil_div(row_tiles, splits))
