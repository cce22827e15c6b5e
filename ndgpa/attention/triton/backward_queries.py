"""Gradients of query and slot bias: the query-major backward kernel.

    p_xy = exp(logit_xy - max_x) / sum_x   recomputed from the same products as in the forward
    w_x = grad_out_x . out_x - grad_lse_x
    g_xy = p_xy (grad_out_x . v_y - w_x)   the gradient of a logit

As the forward, one program per tile of a cell's queries; it writes w besides, for the key-major
kernel. Letters and prefixes as in `tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.triton.inputs import Inputs
from ndgpa.attention.triton.launch import SIZES, Launch
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    ceil_div,
    finite,
    key_rows,
    keys_seen,
    load_rest,
    load_rows,
    logits,
    padded,
    place_of_program,
    problem_of,
    products,
    query_major_tile,
    query_rows,
    rows_strides,
    store_rows,
    tiles_per_slot,
    weights,
)


@triton.jit(do_not_specialize=SIZES)
def query_major_kernel(
    p_query,  # (b, h, n, d)
    p_key,  # (b, hk, n_k, d)
    p_value,  # (b, hk, n_k, dv)
    p_grad_out,  # (b, h, n, dv)
    p_out,  # (b, h, n, dv)
    p_norm,  # (b, 2, h, n) float32, contiguous: largest logit in base 2, and 1 / sum
    p_grad_lse,  # (b, h, n) float32, contiguous
    p_blocks,  # (b, hs, C, K) int32, contiguous
    p_slot_bias,  # (b, hs, C, K) float32, contiguous, or None
    p_key_bias,  # (b, hk, n_k) float32, contiguous, or None
    p_cell_sites,  # (C, X) int64
    p_key_sites,  # (B, R) int64
    p_query_time,  # (n,) int64, or None
    p_key_time,  # (n_k,) int64, or None
    p_grad_query,  # (b, h, n, d)
    p_grad_slot,  # (b, T, C, row tiles, tiles of a slot, K) float32, contiguous, or None
    p_mean,  # (b, h, n) float32, contiguous: w
    s_query_b,
    s_query_h,
    s_query_n,
    s_key_b,
    s_key_h,
    s_key_n,
    s_value_b,
    s_value_h,
    s_value_n,
    s_grad_out_b,
    s_grad_out_h,
    s_grad_out_n,
    s_out_b,
    s_out_h,
    s_out_n,
    s_grad_query_b,
    s_grad_query_h,
    s_grad_query_n,
    s_slots_b,
    s_slots_t,  # of tiles of heads; 0 where they share one selection
    s_lse_b,
    s_lse_h,
    n_k,
    C,
    K,
    num_key_tiles,
    scale,
    scale_2,  # in base 2
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
    SLOTS: tl.constexpr,  # a power of two, of at least the slots of a tile of keys
    MEMBERS: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    FOLD: tl.constexpr,
    CONTAIN: tl.constexpr,  # a row may stand beside keys that it does not see
    PRECISION: tl.constexpr,
):
    SITES: tl.constexpr = MEMBERS * X
    ROW_TILES: tl.constexpr = (GROUP * SITES + ROWS - 1) // ROWS
    IN_TILE: tl.constexpr = max(KEYS // R, 1)  # slots
    row_tile, cell, cells, t, b = place_of_program(C, ROW_TILES, MEMBERS)
    key_head = t // TILES
    slots = b * s_slots_b + t * s_slots_t + cell * K

    # (ROWS,)
    o_row = row_tile * ROWS + tl.arange(0, ROWS)
    m_row = (o_row < GROUP * SITES) & (o_row % SITES < cells * X)
    o_head, o_site, m_row = query_rows(p_cell_sites + cell * X, o_row, m_row, SITES, GROUP, False)
    o_head = t * GROUP + o_head
    o_query = o_head * s_lse_h + o_site
    p_norm += 2 * b * s_lse_b + o_query
    o_query += b * s_lse_b
    b_max = tl.load(p_norm, mask=m_row, other=0.0)
    b_norm = tl.load(p_norm + s_lse_b, mask=m_row, other=0.0)
    o_member = o_row % SITES // X
    b_now = o_site
    if p_query_time is not None:
        b_now = tl.load(p_query_time + o_site)
    # (ROWS, PAD_DV)
    p_rows = p_grad_out + b * s_grad_out_b + o_head * s_grad_out_h + o_site * s_grad_out_n
    b_grad_out = load_rows(p_rows, m_row, DV, PAD_DV)
    b_grad_out_rest = load_rest(p_rows, m_row, DV, PAD_DV, REST_DV)
    p_rows = p_out + b * s_out_b + o_head * s_out_h + o_site * s_out_n
    b_out = load_rows(p_rows, m_row, DV, PAD_DV)
    b_mean = products_of_rows(b_grad_out, b_out)
    if REST_DV:
        b_out_rest = load_rest(p_rows, m_row, DV, PAD_DV, REST_DV)
        b_mean += products_of_rows(b_grad_out_rest, b_out_rest)
    b_mean -= tl.load(p_grad_lse + o_query, mask=m_row, other=0.0)
    tl.store(p_mean + o_query, b_mean, mask=m_row)
    # (ROWS, PAD_D)
    p_rows = p_query + b * s_query_b + o_head * s_query_h + o_site * s_query_n
    b_query = load_rows(p_rows, m_row, D, PAD_D)
    b_query_rest = load_rest(p_rows, m_row, D, PAD_D, REST_D)

    b_grad = tl.zeros((ROWS, PAD_D), tl.float32)
    if REST_D:
        b_grad_rest = tl.zeros((ROWS, REST_D), tl.float32)
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
        # (KEYS, PAD_D), (KEYS, PAD_DV), (ROWS, KEYS)
        b_key = load_rows(p_keys + o_key * s_key_n, m_load, D, PAD_D)
        b_key_rest = load_rest(p_keys + o_key * s_key_n, m_load, D, PAD_D, REST_D)
        b_s = products(b_query, b_key, b_query_rest, b_key_rest, PRECISION)
        b_s = logits(b_s, scale_2, b_bias[None, :], m_seen, FOLD)
        b_p = weights(b_s, scale_2, b_max[:, None], FOLD) * b_norm[:, None]
        b_value = load_rows(p_values + o_key * s_value_n, m_load, DV, PAD_DV)
        b_value_rest = load_rest(p_values + o_key * s_value_n, m_load, DV, PAD_DV, REST_DV)
        if MEMBERS > 1:
            b_key, _ = finite(b_key)
            b_value, _ = finite(b_value)
            if REST_D:
                b_key_rest, _ = finite(b_key_rest)
            if REST_DV:
                b_value_rest, _ = finite(b_value_rest)
        b_slope = products(b_grad_out, b_value, b_grad_out_rest, b_value_rest, PRECISION)
        b_g = b_p * (b_slope - b_mean[:, None])
        if CONTAIN:  # the rows of a query that is not finite are NaN throughout
            b_g = tl.where(m_seen, b_g, 0.0)
        b_grad = tl.dot(b_g.to(b_key.dtype), b_key, b_grad, input_precision=PRECISION)
        if REST_D:
            b_grad_rest = tl.dot(
                b_g.to(b_key.dtype), b_key_rest, b_grad_rest, input_precision=PRECISION
            )
        if p_grad_slot is not None:
            o_first = i // TILES_PER_SLOT * IN_TILE
            o_in = tl.arange(0, SLOTS)
            m_of = (o_slot - o_first)[None, :] == o_in[:, None]
            # A row that does not exist has a weight all the same: that of logit 0 plus the bias.
            b_of_key = tl.sum(tl.where(m_row[:, None], b_g, 0.0), 0)
            b_of_slot = tl.sum(tl.where(m_of, b_of_key[None, :], 0.0), 1)
            m_in = (o_first + o_in < cells * K) & (o_in < IN_TILE)
            o_part = (
                ((b * tl.num_programs(1) + t) * C + cell) * ROW_TILES + row_tile
            ) * TILES_PER_SLOT
            o_part += i % TILES_PER_SLOT
            if MEMBERS > 1:  # which have one tile of rows
                o_part += (o_first + o_in) // K * (TILES_PER_SLOT - 1)
            tl.store(p_grad_slot + o_part * K + o_first + o_in, b_of_slot, mask=m_in)

    p_rows = p_grad_query + b * s_grad_query_b + o_head * s_grad_query_h
    p_rows += o_site * s_grad_query_n
    store_rows(p_rows, b_grad * scale, m_row, D, PAD_D)
    if REST_D:
        store_rows(p_rows, b_grad_rest * scale, m_row, D, REST_D, PAD_D)


@triton.jit
def products_of_rows(b_grad_out, b_out):
    """Of each row; an output that is not finite and has no gradient sends none."""
    b_terms = b_grad_out.to(tl.float32) * b_out.to(tl.float32)
    return tl.sum(tl.where(b_grad_out == 0, 0.0, b_terms), 1)


def backward_queries(
    given: Inputs,
    *,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    norm: Tensor,
    grad_query: Tensor,
    mean: Tensor,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write the gradient of the query, and w; return that of the slot bias, (b, hs, C, K).

    Args:
        given: As `Inputs.laid_out` gives them.
        norm: That of the forward.
        mean: (b, h, n) float32, contiguous: w.
    """
    tile = tile or query_major_tile(problem_of(given))
    launch = Launch.of(given, tile)
    grad_slot = None
    if given.slot_bias is not None:
        grad_slot = _room_for_parts(given, tile)
    if launch.programs:
        query_major_kernel[launch.grid](
            given.query,
            given.key,
            given.value,
            grad_out,
            out,
            norm,
            grad_lse,
            given.blocks,
            given.slot_bias,
            given.key_bias,
            given.cell_sites,
            given.key_sites,
            given.query_time,
            given.key_time,
            grad_query,
            grad_slot,
            mean,
            *rows_strides(given.query),
            *rows_strides(given.key),
            *rows_strides(given.value),
            *rows_strides(grad_out),
            *rows_strides(out),
            *rows_strides(grad_query),
            *launch.sizes,
            given.scale,
            given.scale * LOG2_E,
            SLOTS=padded(max(tile.keys // given.key_sites.shape[1], 1)),
            CONTAIN=tile.members > 1 or given.query_time is not None,
            **launch.constants,
        )
    if grad_slot is None:
        return None
    by_tile = grad_slot.sum(dim=3)
    return by_tile.unflatten(1, (given.blocks.shape[1], -1)).sum(dim=2)


def _room_for_parts(given: Inputs, tile: Tile) -> Tensor:
    """Of the gradient of the slot bias: (b, tiles of heads, C, tiles of a slot, K)."""
    (batch, _, cells, slots), tiles = given.blocks.shape, given.tiles
    rows = given.query.shape[1] // tiles * given.cell_sites.shape[1] * tile.members
    parts = ceil_div(rows, tile.rows) * tiles_per_slot(given.key_sites.shape[1], tile.keys)
    return given.query.new_empty(batch, tiles, cells, parts, slots, dtype=torch.float32)
