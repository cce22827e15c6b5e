"""Attention of each cell to the blocks of its selection: the forward kernel.

One program holds the queries of one cell, or of a few small ones (all heads that share the
selection and a key head), and walks over their keys, whole blocks at a time, gathered row by row
from where they are. Softmax is computed online in base 2 (Milakov and Gimelshein 2018; Dao et al.
2022). Letters and prefixes as in `tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.triton.inputs import Inputs
from ndgpa.attention.triton.launch import SIZES, Launch
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    finite,
    forward_tile,
    key_rows,
    keys_seen,
    load_rest,
    load_rows,
    logits,
    place_of_program,
    problem_of,
    products,
    query_rows,
    rows_strides,
    store_rows,
    weights,
)

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_query,  # (b, h, n, d)
    p_key,  # (b, hk, n_k, d)
    p_value,  # (b, hk, n_k, dv)
    p_blocks,  # (b, hs, C, K) int32, contiguous
    p_slot_bias,  # (b, hs, C, K) float32, contiguous, or None
    p_key_bias,  # (b, hk, n_k) float32, contiguous, or None
    p_cell_sites,  # (C, X) int64
    p_key_sites,  # (B, R) int64
    p_query_time,  # (n,) int64, or None
    p_key_time,  # (n_k,) int64, or None
    p_out,  # (b, h, n, dv)
    p_lse,  # (b, h, n) float32, contiguous
    p_norm,  # (b, 2, h, n) float32, contiguous: largest logit in base 2, and 1 / sum
    s_query_b,
    s_query_h,
    s_query_n,
    s_key_b,
    s_key_h,
    s_key_n,
    s_value_b,
    s_value_h,
    s_value_n,
    s_out_b,
    s_out_h,
    s_out_n,
    s_slots_b,
    s_slots_t,  # of tiles of heads; 0 where they share one selection
    s_lse_b,
    s_lse_h,
    n_k,
    C,
    K,
    num_key_tiles,
    scale,  # in base 2
    X: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,  # tiles of heads of a key head
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    REST_D: tl.constexpr,  # features beyond PAD_D, padded
    REST_DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_PER_SLOT: tl.constexpr,
    MEMBERS: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    FOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SITES: tl.constexpr = MEMBERS * X
    ROW_TILES: tl.constexpr = (GROUP * SITES + ROWS - 1) // ROWS
    row_tile, cell, cells, t, b = place_of_program(C, ROW_TILES, MEMBERS)
    key_head = t // TILES
    slots = b * s_slots_b + t * s_slots_t + cell * K

    # (ROWS,)
    o_row = row_tile * ROWS + tl.arange(0, ROWS)
    m_row = (o_row < GROUP * SITES) & (o_row % SITES < cells * X)
    o_head, o_site, m_row = query_rows(p_cell_sites + cell * X, o_row, m_row, SITES, GROUP, False)
    o_head = t * GROUP + o_head
    # (ROWS, PAD_D)
    p_rows = p_query + b * s_query_b + o_head * s_query_h + o_site * s_query_n
    b_query = load_rows(p_rows, m_row, D, PAD_D)
    b_query_rest = load_rest(p_rows, m_row, D, PAD_D, REST_D)
    o_member = o_row % SITES // X
    b_now = o_site
    if p_query_time is not None:
        b_now = tl.load(p_query_time + o_site)

    b_lost = tl.zeros((ROWS,), tl.int32)
    b_max = tl.full((ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    b_out = tl.zeros((ROWS, PAD_DV), tl.float32)
    if REST_DV:
        b_out_rest = tl.zeros((ROWS, REST_DV), tl.float32)
    p_keys = p_key + b * s_key_b + key_head * s_key_h
    p_values = p_value + b * s_value_b + key_head * s_value_h
    keys = (b * (tl.num_programs(1) // TILES) + key_head) * n_k
    for i in range(0, num_key_tiles):
        # (KEYS,)
        o_slot, o_key, m_key = key_rows(
            p_blocks + slots, p_key_sites, i, cells * K, R, KEYS, TILES_PER_SLOT, EVEN, WHOLE
        )
        m_load, m_seen, b_bias = keys_seen(
            p_slot_bias,
            p_key_bias,
            p_key_time,
            b_now,
            slots,
            keys,
            K,
            o_slot,
            o_key,
            o_member,
            m_key,
            MEMBERS,
        )
        # (KEYS, PAD_D), (ROWS, KEYS)
        b_key = load_rows(p_keys + o_key * s_key_n, m_load, D, PAD_D)
        b_key_rest = load_rest(p_keys + o_key * s_key_n, m_load, D, PAD_D, REST_D)
        b_s = products(b_query, b_key, b_query_rest, b_key_rest, PRECISION)
        b_s = logits(b_s, scale, b_bias[None, :], m_seen, FOLD)
        b_new_max = tl.max(b_s, 1)
        if FOLD:
            b_new_max *= scale
        b_new_max = tl.maximum(b_max, b_new_max)
        b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_p = weights(b_s, scale, b_base[:, None], FOLD)
        b_shrink = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        # (KEYS, PAD_DV)
        b_value = load_rows(p_values + o_key * s_value_n, m_load, DV, PAD_DV)
        if MEMBERS > 1:
            b_value, m_bad = finite(b_value)
            b_lost = tl.maximum(b_lost, tl.max((m_seen & m_bad[None, :]).to(tl.int32), 1))
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_p.to(b_value.dtype), b_value, b_out, input_precision=PRECISION)
        if REST_DV:
            b_rest = load_rest(p_values + o_key * s_value_n, m_load, DV, PAD_DV, REST_DV)
            if MEMBERS > 1:
                b_rest, m_bad = finite(b_rest)
                b_lost = tl.maximum(b_lost, tl.max((m_seen & m_bad[None, :]).to(tl.int32), 1))
            b_out_rest = b_out_rest * b_shrink[:, None]
            b_out_rest = tl.dot(b_p.to(b_rest.dtype), b_rest, b_out_rest, input_precision=PRECISION)
        b_max = b_new_max

    m_masked = b_sum == 0
    b_sum = tl.where(m_masked, 1.0, b_sum)
    b_lse = (b_max + tl.log2(b_sum)) / _LOG2_E  # -inf of a masked row: its largest logit is
    b_max = tl.where(m_masked, 0.0, b_max)
    b_norm = tl.where(m_masked, 0.0, 1.0 / b_sum)
    if MEMBERS > 1:
        b_out = tl.where(b_lost[:, None] > 0, float("nan"), b_out)
    p_rows = p_out + b * s_out_b + o_head * s_out_h + o_site * s_out_n
    store_rows(p_rows, b_out * b_norm[:, None], m_row, DV, PAD_DV)
    if REST_DV:
        if MEMBERS > 1:
            b_out_rest = tl.where(b_lost[:, None] > 0, float("nan"), b_out_rest)
        store_rows(p_rows, b_out_rest * b_norm[:, None], m_row, DV, REST_DV, PAD_DV)
    o_query = o_head * s_lse_h + o_site
    tl.store(p_lse + b * s_lse_b + o_query, b_lse, mask=m_row)
    p_norm += 2 * b * s_lse_b + o_query
    tl.store(p_norm, b_max, mask=m_row)
    tl.store(p_norm + s_lse_b, b_norm, mask=m_row)


def forward(
    given: Inputs, out: Tensor, lse: Tensor, norm: Tensor, tile: Tile | None = None
) -> None:
    """Write the output, its log-sum-exp and what the backward normalises by.

    Args:
        given: As `Inputs.laid_out` gives them.
        out: (b, h, n, dv).
        lse: (b, h, n) float32, contiguous.
        norm: (b, 2, h, n) float32, contiguous.
    """
    launch = Launch.of(given, tile or forward_tile(problem_of(given)))
    if launch.programs == 0:
        return
    forward_kernel[launch.grid](
        given.query,
        given.key,
        given.value,
        given.blocks,
        given.slot_bias,
        given.key_bias,
        given.cell_sites,
        given.key_sites,
        given.query_time,
        given.key_time,
        out,
        lse,
        norm,
        *rows_strides(given.query),
        *rows_strides(given.key),
        *rows_strides(given.value),
        *rows_strides(out),
        *launch.sizes,
        given.scale * LOG2_E,
        **launch.constants,
    )
