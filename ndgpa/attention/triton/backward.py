"""Gradients of the attention of cells to selected blocks, in three kernels.

    p_xy = exp(logit_xy - max_x) / sum_x   recomputed from the same products as in the forward
    w_x = grad_out_x . out_x - grad_lse_x
    g_xy = p_xy (grad_out_x . v_y - w_x)   the gradient of a logit

Query-major: as the forward, one program per tile of a cell's queries, gives the gradients of query
and slot bias, and w. Key-major: one program per segment of the readers of a key block (`inverse`)
gives those of key, value and key bias; the third kernel adds up the segments of hot blocks, in
order. Where a site may stand in no block or in several, both write one row for each place of each
block, and a fourth kernel adds up the places of each site, in order. Letters and prefixes as in
`triton_tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.attention.triton.inverse import inverse, sorted_places
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    finite,
    key_major_tile,
    key_rows,
    key_tiles,
    keys_seen,
    load_rows,
    masked_logits,
    padded,
    padded_width,
    precision,
    problem_of,
    query_major_tile,
    query_rows,
    rows_strides,
    store_rows,
    tiles_per_slot,
)

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
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
    n,
    n_k,
    C,
    K,
    T,
    key_heads,
    selection_heads,
    num_key_tiles,
    scale,
    X: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_PER_SLOT: tl.constexpr,
    SLOTS: tl.constexpr,  # a power of two, of at least the slots of a tile of keys
    MEMBERS: tl.constexpr,
    CONTAIN: tl.constexpr,  # a row may stand beside keys that it does not see
    PRECISION: tl.constexpr,
):
    SITES: tl.constexpr = MEMBERS * X
    ROW_TILES: tl.constexpr = (GROUP * SITES + ROWS - 1) // ROWS
    IN_TILE: tl.constexpr = max(KEYS // R, 1)  # slots
    program = tl.program_id(0).to(tl.int64)
    row_tile = program % ROW_TILES
    programs = tl.cdiv(C, MEMBERS)
    cell = program // ROW_TILES % programs * MEMBERS
    t = program // (ROW_TILES * programs) % T
    b = program // (ROW_TILES * programs) // T
    cells = MEMBERS
    if MEMBERS > 1:
        cells = tl.minimum(C - cell, MEMBERS)
    key_head = t * key_heads // T
    slots = ((b * selection_heads + t * selection_heads // T) * C + cell) * K

    # (ROWS,)
    o_row = row_tile * ROWS + tl.arange(0, ROWS)
    m_row = (o_row < GROUP * SITES) & (o_row % SITES < cells * X)
    o_head, o_site, m_row = query_rows(p_cell_sites + cell * X, o_row, m_row, SITES)
    o_head = t * GROUP + o_head
    o_query = (b * T * GROUP + o_head) * n + o_site
    p_norm += o_query + b * T * GROUP * n
    b_max = tl.load(p_norm, mask=m_row, other=0.0)
    b_norm = tl.load(p_norm + T * GROUP * n, mask=m_row, other=0.0)
    o_member = o_row % SITES // X
    b_now = o_site
    if p_query_time is not None:
        b_now = tl.load(p_query_time + o_site)
    # (ROWS, PAD_DV)
    p_rows = p_grad_out + b * s_grad_out_b + o_head * s_grad_out_h + o_site * s_grad_out_n
    b_grad_out = load_rows(p_rows, m_row, DV, PAD_DV)
    p_rows = p_out + b * s_out_b + o_head * s_out_h + o_site * s_out_n
    b_out = load_rows(p_rows, m_row, DV, PAD_DV)
    # An output that is not finite and has no gradient sends none.
    b_terms = b_grad_out.to(tl.float32) * b_out.to(tl.float32)
    b_mean = tl.sum(tl.where(b_grad_out == 0, 0.0, b_terms), 1)
    b_mean -= tl.load(p_grad_lse + o_query, mask=m_row, other=0.0)
    tl.store(p_mean + o_query, b_mean, mask=m_row)
    # (ROWS, PAD_D)
    p_rows = p_query + b * s_query_b + o_head * s_query_h + o_site * s_query_n
    b_query = load_rows(p_rows, m_row, D, PAD_D)

    b_grad = tl.zeros((ROWS, PAD_D), tl.float32)
    p_keys = p_key + b * s_key_b + key_head * s_key_h
    p_values = p_value + b * s_value_b + key_head * s_value_h
    keys = (b * key_heads + key_head) * n_k
    for i in range(0, num_key_tiles):
        # (KEYS,)
        o_slot, o_key, m_key = key_rows(
            p_blocks + slots, p_key_sites, i, cells * K, R, KEYS, TILES_PER_SLOT
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
        b_s = masked_logits(b_query, b_key, scale * _LOG2_E, b_bias[None, :], m_seen, PRECISION)
        b_p = tl.exp2(b_s - b_max[:, None]) * b_norm[:, None]
        b_value = load_rows(p_values + o_key * s_value_n, m_load, DV, PAD_DV)
        if MEMBERS > 1:
            b_key, _ = finite(b_key)
            b_value, _ = finite(b_value)
        b_slope = tl.dot(b_grad_out, tl.trans(b_value), input_precision=PRECISION)
        b_g = b_p * (b_slope - b_mean[:, None])
        if CONTAIN:  # the rows of a query that is not finite are NaN throughout
            b_g = tl.where(m_seen, b_g, 0.0)
        b_grad = tl.dot(b_g.to(b_key.dtype), b_key, b_grad, input_precision=PRECISION)
        if p_grad_slot is not None:
            o_first = i // TILES_PER_SLOT * IN_TILE
            o_in = tl.arange(0, SLOTS)
            m_of = (o_slot - o_first)[None, :] == o_in[:, None]
            # A row that does not exist has a weight all the same: that of logit 0 plus the bias.
            b_of_key = tl.sum(tl.where(m_row[:, None], b_g, 0.0), 0)
            b_of_slot = tl.sum(tl.where(m_of, b_of_key[None, :], 0.0), 1)
            m_in = (o_first + o_in < cells * K) & (o_in < IN_TILE)
            o_part = (((b * T + t) * C + cell) * ROW_TILES + row_tile) * TILES_PER_SLOT
            o_part += i % TILES_PER_SLOT
            if MEMBERS > 1:  # which have one tile of rows
                o_part += (o_first + o_in) // K * (TILES_PER_SLOT - 1)
            tl.store(p_grad_slot + o_part * K + o_first + o_in, b_of_slot, mask=m_in)

    p_rows = p_grad_query + b * s_grad_query_b + o_head * s_grad_query_h
    store_rows(p_rows + o_site * s_grad_query_n, b_grad * scale, m_row, D, PAD_D)


@triton.jit
def key_major_kernel(
    p_query,  # (b, h, n, d)
    p_key,  # (b, hk, n_k, d)
    p_value,  # (b, hk, n_k, dv)
    p_grad_out,  # (b, h, n, dv)
    p_norm,  # (b, 2, h, n) float32, contiguous
    p_mean,  # (b, h, n) float32, contiguous: w
    p_key_bias,  # (b, hk, n_k) float32, contiguous, or None
    p_cell_sites,  # (C, X) int64
    p_key_sites,  # (B, R) int64
    p_query_time,  # (n,) int64, or None
    p_key_time,  # (n_k,) int64, or None
    p_cells,  # (L, E) int32: the fields of `Inverse`, contiguous
    p_biases,  # (L, E) float32, or None
    p_segments,  # (L, S, 4) int32
    p_grad_key,  # (b, hk, n_out, d): n_out is n_k, or B * R with BY_PLACE
    p_grad_value,  # (b, hk, n_out, dv)
    p_grad_bias,  # (b, hk, n_out) float32, contiguous, or None
    p_parts,  # (b, hk, parts, R, PART) float32, contiguous
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
    s_grad_key_b,
    s_grad_key_h,
    s_grad_key_n,
    s_grad_value_b,
    s_grad_value_h,
    s_grad_value_n,
    n,
    n_k,
    n_out,
    C,
    E,
    S,
    key_heads,
    table_heads,
    parts,
    scale,
    X: tl.constexpr,
    R: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,  # tiles of heads of a key head
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_PER_BLOCK: tl.constexpr,
    PART: tl.constexpr,  # d + dv + 1, aligned
    BY_PLACE: tl.constexpr,  # gradients of places of blocks, not of sites
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    key_tile = program % TILES_PER_BLOCK
    segment = program // TILES_PER_BLOCK % S
    key_head = program // (TILES_PER_BLOCK * S) % key_heads
    b = program // (TILES_PER_BLOCK * S) // key_heads
    H = key_heads * TILES * GROUP
    table = b * table_heads + key_head * table_heads // key_heads
    p_segment = p_segments + (table * S + segment) * 4
    block = tl.load(p_segment).to(tl.int64)
    if block < 0:
        return
    first = tl.load(p_segment + 1)
    end = tl.load(p_segment + 2)
    part = tl.load(p_segment + 3).to(tl.int64)

    # (KEYS,)
    o_place = key_tile * KEYS + tl.arange(0, KEYS)
    o_key = tl.load(p_key_sites + block * R + o_place, mask=o_place < R, other=-1)
    m_exists = o_key >= 0
    o_key = tl.maximum(o_key, 0)
    m_key = m_exists
    m_load = m_key
    b_bias = tl.zeros((KEYS,), tl.float32)
    o_bias = (b * key_heads + key_head) * n_k + o_key
    if p_key_bias is not None:
        b_bias = tl.load(p_key_bias + o_bias, mask=m_key, other=float("-inf")) * _LOG2_E
        m_key = m_key & (b_bias != float("-inf"))
        m_load = m_key & (b_bias == b_bias)
    if p_key_time is not None:
        b_then = tl.load(p_key_time + o_key)
    # (KEYS, PAD_D), (KEYS, PAD_DV)
    p_rows = p_key + b * s_key_b + key_head * s_key_h + o_key * s_key_n
    b_key = load_rows(p_rows, m_load, D, PAD_D)
    p_rows = p_value + b * s_value_b + key_head * s_value_h + o_key * s_value_n
    b_value = load_rows(p_rows, m_load, DV, PAD_DV)

    b_grad_key = tl.zeros((KEYS, PAD_D), tl.float32)
    b_grad_value = tl.zeros((KEYS, PAD_DV), tl.float32)
    b_grad_bias = tl.zeros((KEYS,), tl.float32)
    for start in range(0, (end - first) * (GROUP * X), ROWS):
        # (ROWS,)
        o_row = start + tl.arange(0, ROWS)
        o_reader = table * E + first + o_row // (GROUP * X)
        m_row = o_row < (end - first) * (GROUP * X)
        o_tile = tl.load(p_cells + o_reader, mask=m_row, other=0).to(tl.int64)
        o_head, o_site, m_row = query_rows(
            p_cell_sites + o_tile % C * X, o_row % (GROUP * X), m_row, X
        )
        o_head = (key_head * TILES + o_tile // C) * GROUP + o_head
        o_query = (b * H + o_head) * n + o_site
        o_norm = o_query + b * H * n
        b_max = tl.load(p_norm + o_norm, mask=m_row, other=0.0)
        b_norm = tl.load(p_norm + H * n + o_norm, mask=m_row, other=0.0)
        b_mean = tl.load(p_mean + o_query, mask=m_row, other=0.0)
        if p_query_time is not None:
            # A query that is not finite, and on which nothing depends, sends no gradient.
            m_row = m_row & ((b_norm == b_norm) | (b_mean != b_mean))
            b_max = tl.where(m_row, b_max, 0.0)
            b_norm = tl.where(m_row, b_norm, 0.0)
        b_added = b_bias[:, None]
        if p_biases is not None:
            b_added += tl.load(p_biases + o_reader, mask=m_row, other=0.0)[None, :] * _LOG2_E
        m_seen = m_key[:, None] & m_row[None, :]
        if p_query_time is not None:
            b_now = tl.load(p_query_time + o_site)
            m_seen = m_seen & (b_then[:, None] <= b_now[None, :])
        # (ROWS, PAD_D), (ROWS, PAD_DV), (KEYS, ROWS)
        p_queries = p_query + b * s_query_b + o_head * s_query_h + o_site * s_query_n
        b_query = load_rows(p_queries, m_row, D, PAD_D)
        b_s = masked_logits(b_key, b_query, scale * _LOG2_E, b_added, m_seen, PRECISION)
        b_p = tl.exp2(b_s - b_max[None, :]) * b_norm[None, :]
        p_grads = p_grad_out + b * s_grad_out_b + o_head * s_grad_out_h + o_site * s_grad_out_n
        b_grad_out = load_rows(p_grads, m_row, DV, PAD_DV)
        b_grad_value = tl.dot(
            b_p.to(b_grad_out.dtype), b_grad_out, b_grad_value, input_precision=PRECISION
        )
        b_slope = tl.dot(b_value, tl.trans(b_grad_out), input_precision=PRECISION)
        b_g = b_p * (b_slope - b_mean[None, :])
        b_grad_key = tl.dot(b_g.to(b_query.dtype), b_query, b_grad_key, input_precision=PRECISION)
        if p_grad_bias is not None:
            b_grad_bias += tl.sum(b_g, 1)

    b_grad_key *= scale
    if part < 0:
        o_out = o_key
        if BY_PLACE:
            o_out = block * R + o_place
        p_grad_keys = p_grad_key + b * s_grad_key_b + key_head * s_grad_key_h
        store_rows(p_grad_keys + o_out * s_grad_key_n, b_grad_key, m_exists, D, PAD_D)
        p_grad_values = p_grad_value + b * s_grad_value_b + key_head * s_grad_value_h
        store_rows(p_grad_values + o_out * s_grad_value_n, b_grad_value, m_exists, DV, PAD_DV)
        if p_grad_bias is not None:
            p_bias = p_grad_bias + (b * key_heads + key_head) * n_out
            tl.store(p_bias + o_out, b_grad_bias, mask=m_exists)
    else:
        p_part = p_parts + (((b * key_heads + key_head) * parts + part) * R + o_place) * PART
        store_rows(p_part, b_grad_key, m_exists, D, PAD_D)
        store_rows(p_part + D, b_grad_value, m_exists, DV, PAD_DV)
        if p_grad_bias is not None:
            tl.store(p_part + D + DV, b_grad_bias, mask=m_exists)


@triton.jit
def add_parts_kernel(
    p_parts,  # (b, hk, parts, R, PART) float32, contiguous
    p_hot,  # (L, H, 3) int32, contiguous
    p_key_sites,  # (B, R) int64
    p_grad_key,  # (b, hk, n_out, d): n_out is n_k, or B * R with BY_PLACE
    p_grad_value,  # (b, hk, n_out, dv)
    p_grad_bias,  # (b, hk, n_out) float32, contiguous, or None
    s_grad_key_b,
    s_grad_key_h,
    s_grad_key_n,
    s_grad_value_b,
    s_grad_value_h,
    s_grad_value_n,
    n_out,
    H,
    key_heads,
    table_heads,
    parts,
    R: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_DV: tl.constexpr,
    KEYS: tl.constexpr,
    TILES_PER_BLOCK: tl.constexpr,
    PART: tl.constexpr,  # d + dv + 1, aligned
    BY_PLACE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    key_tile = program % TILES_PER_BLOCK
    row = program // TILES_PER_BLOCK % H
    key_head = program // (TILES_PER_BLOCK * H) % key_heads
    b = program // (TILES_PER_BLOCK * H) // key_heads
    table = b * table_heads + key_head * table_heads // key_heads
    p_row = p_hot + (table * H + row) * 3
    block = tl.load(p_row).to(tl.int64)
    if block < 0:
        return
    # (KEYS,)
    o_place = key_tile * KEYS + tl.arange(0, KEYS)
    o_key = tl.load(p_key_sites + block * R + o_place, mask=o_place < R, other=-1)
    m_key = o_key >= 0
    b_grad_key = tl.zeros((KEYS, PAD_D), tl.float32)
    b_grad_value = tl.zeros((KEYS, PAD_DV), tl.float32)
    b_grad_bias = tl.zeros((KEYS,), tl.float32)
    for part in range(tl.load(p_row + 1), tl.load(p_row + 2)):
        o_part = ((b * key_heads + key_head) * parts + part) * R + o_place
        p_part = p_parts + o_part * PART
        b_grad_key += load_rows(p_part, m_key, D, PAD_D)
        b_grad_value += load_rows(p_part + D, m_key, DV, PAD_DV)
        if p_grad_bias is not None:
            b_grad_bias += tl.load(p_part + D + DV, mask=m_key, other=0.0)
    o_out = o_key
    if BY_PLACE:
        o_out = block * R + o_place
    p_rows = p_grad_key + b * s_grad_key_b + key_head * s_grad_key_h
    store_rows(p_rows + o_out * s_grad_key_n, b_grad_key, m_key, D, PAD_D)
    p_rows = p_grad_value + b * s_grad_value_b + key_head * s_grad_value_h
    store_rows(p_rows + o_out * s_grad_value_n, b_grad_value, m_key, DV, PAD_DV)
    if p_grad_bias is not None:
        p_bias = p_grad_bias + (b * key_heads + key_head) * n_out
        tl.store(p_bias + o_out, b_grad_bias, mask=m_key)


@triton.jit
def add_places_kernel(
    p_of_place,  # (b, hk, places, WIDTH) float32, contiguous
    p_order,  # (places,) int64: the places of each site, site after site
    p_starts,  # (n_k + 1,) int64: where those of each site begin
    p_grad,  # (b, hk, n_k, WIDTH)
    s_grad_b,
    s_grad_h,
    s_grad_n,
    n_k,
    places,
    key_heads,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(n_k, KEYS)
    key_head = program // tiles % key_heads
    b = program // tiles // key_heads
    # (KEYS,)
    o_key = program % tiles * KEYS + tl.arange(0, KEYS)
    m_key = o_key < n_k
    o_first = tl.load(p_starts + o_key, mask=m_key, other=0)
    o_end = tl.load(p_starts + o_key + 1, mask=m_key, other=0)
    p_of_place += (b * key_heads + key_head) * places * WIDTH
    # (KEYS, PAD)
    b_sum = tl.zeros((KEYS, PAD), tl.float32)
    for i in range(0, tl.max(o_end - o_first)):
        m_place = o_first + i < o_end
        o_place = tl.load(p_order + o_first + i, mask=m_place, other=0)
        b_sum += load_rows(p_of_place + o_place * WIDTH, m_place, WIDTH, PAD)
    p_rows = p_grad + b * s_grad_b + key_head * s_grad_h + o_key * s_grad_n
    store_rows(p_rows, b_sum, m_key, WIDTH, PAD)


@on_its_device
def backward_queries(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    out: Tensor,
    norm: Tensor,
    grad_lse: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    grad_query: Tensor,
    mean: Tensor,
    scale: float,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write the gradient of the query, and w; return that of the slot bias, (b, hs, C, K)."""
    (batch, heads, n, d), (_, key_heads, n_k, dv) = query.shape, value.shape
    selection_heads, cells, slots = blocks.shape[1:]
    tiles = heads if selection_heads == heads else key_heads
    places, sites = cell_sites.shape[1], key_sites.shape[1]
    if tile is None:
        tile = query_major_tile(problem_of(query, value, blocks, cell_sites, key_sites))
    rows = heads // tiles * places * tile.members
    row_tiles, per_slot = -(-rows // tile.rows), tiles_per_slot(sites, tile.keys)
    grad_slot = None
    if slot_bias is not None:
        shape = (batch, tiles, cells, row_tiles * per_slot, slots)
        grad_slot = slot_bias.new_empty(shape)
    programs = row_tiles * -(-cells // tile.members) * tiles * batch
    if programs:
        query_major_kernel[(programs,)](
            query,
            key,
            value,
            grad_out,
            out,
            norm,
            grad_lse,
            blocks,
            slot_bias,
            key_bias,
            cell_sites,
            key_sites,
            query_time,
            key_time,
            grad_query,
            grad_slot,
            mean,
            *rows_strides(query),
            *rows_strides(key),
            *rows_strides(value),
            *rows_strides(grad_out),
            *rows_strides(out),
            *rows_strides(grad_query),
            n,
            n_k,
            cells,
            slots,
            tiles,
            key_heads,
            selection_heads,
            key_tiles(tile.members * slots, sites, tile.keys),
            scale,
            X=places,
            R=sites,
            GROUP=heads // tiles,
            D=d,
            DV=dv,
            PAD_D=padded_width(d),
            PAD_DV=padded_width(dv),
            ROWS=tile.rows,
            KEYS=tile.keys,
            TILES_PER_SLOT=per_slot,
            SLOTS=padded(max(tile.keys // sites, 1)),
            MEMBERS=tile.members,
            CONTAIN=tile.members > 1 or query_time is not None,
            PRECISION=precision(query.dtype),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    if grad_slot is None:
        return None
    by_tile = grad_slot.sum(dim=3)
    return by_tile.unflatten(1, (selection_heads, -1)).sum(dim=2)


@on_its_device
def backward_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    norm: Tensor,
    mean: Tensor,
    blocks: Tensor,
    slot_bias: Tensor | None,
    key_bias: Tensor | None,
    cell_sites: Tensor,
    key_sites: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    grad_key: Tensor,
    grad_value: Tensor,
    grad_bias: Tensor | None,
    scale: float,
    partition: bool = True,
    tile: Tile | None = None,
    longest: int | None = None,
) -> None:
    """Write the gradients of key, value and key bias.

    Args:
        partition: Every site of the keys is in exactly one block.
        longest: That of `inverse`.
    """
    grads = [x for x in (grad_key, grad_value, grad_bias) if x is not None]
    if not partition:
        grad_key, grad_value, *biases = [_by_place(x, key_sites) for x in grads]
        grad_bias = biases[0] if biases else None
    (batch, heads, n, d), (_, key_heads, n_k, dv) = query.shape, value.shape
    places, (num_blocks, sites) = cell_sites.shape[1], key_sites.shape
    group = heads // (heads if blocks.shape[1] == heads else key_heads)
    if tile is None:
        tile = key_major_tile(problem_of(query, value, blocks, cell_sites, key_sites))
    if longest is None:
        longest = longest_segment(blocks, num_blocks, key_heads, group * places)
    readers = inverse(blocks, slot_bias, num_blocks, key_heads, longest)
    per_block, part_width = tiles_per_slot(sites, tile.keys), -(-(d + dv + 1) // 4) * 4
    parts = mean.new_empty(batch, key_heads, readers.parts, sites, part_width)
    programs = per_block * readers.segments.shape[1] * key_heads * batch
    if programs == 0:
        return
    shape = {
        "R": sites,
        "D": d,
        "DV": dv,
        "PAD_D": padded_width(d),
        "PAD_DV": padded_width(dv),
        "TILES_PER_BLOCK": per_block,
        "PART": part_width,
        "BY_PLACE": not partition,
    }
    key_major_kernel[(programs,)](
        query,
        key,
        value,
        grad_out,
        norm,
        mean,
        key_bias,
        cell_sites,
        key_sites,
        query_time,
        key_time,
        readers.cells,
        readers.biases,
        readers.segments,
        grad_key,
        grad_value,
        grad_bias,
        parts,
        *rows_strides(query),
        *rows_strides(key),
        *rows_strides(value),
        *rows_strides(grad_out),
        *rows_strides(grad_key),
        *rows_strides(grad_value),
        n,
        n_k,
        grad_key.shape[2],
        blocks.shape[2],
        readers.cells.shape[1],
        readers.segments.shape[1],
        key_heads,
        min(blocks.shape[1], key_heads),
        readers.parts,
        scale,
        X=places,
        GROUP=group,
        TILES=heads // group // key_heads,
        ROWS=tile.rows,
        KEYS=tile.keys,
        PRECISION=precision(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
        **shape,
    )
    hot = readers.hot.shape[1]
    if hot:
        add_parts_kernel[(per_block * hot * key_heads * batch,)](
            parts,
            readers.hot,
            key_sites,
            grad_key,
            grad_value,
            grad_bias,
            *rows_strides(grad_key),
            *rows_strides(grad_value),
            grad_key.shape[2],
            hot,
            key_heads,
            min(blocks.shape[1], key_heads),
            readers.parts,
            KEYS=tile.keys,
            num_warps=4,
            enable_fp_fusion=True,
            **shape,
        )
    if not partition:
        of_places = [x for x in (grad_key, grad_value, grad_bias) if x is not None]
        _add_places(of_places, key_sites, grads)


def _by_place(grad: Tensor, key_sites: Tensor) -> Tensor:
    """Room for the gradients of all places of the blocks."""
    shape = *grad.shape[:2], key_sites.numel(), *grad.shape[3:]
    return grad.new_empty(shape, dtype=torch.float32)


def _add_places(of_places: list[Tensor], key_sites: Tensor, grads: list[Tensor]) -> None:
    """Write the sums over the places of each site; 0 for a site that stands nowhere."""
    order, starts = sorted_places(key_sites, num_sites=grads[0].shape[2])
    for of_place, grad in zip(of_places, grads, strict=True):
        if grad.dim() == 3:  # a bias is a feature
            of_place, grad = of_place[..., None], grad[..., None]
        (batch, key_heads, n_k, width), places = grad.shape, of_place.shape[2]
        pad = padded_width(width)
        keys = max(2048 // pad, 1)
        add_places_kernel[(-(-n_k // keys) * key_heads * batch,)](
            of_place,
            order,
            starts,
            grad,
            *rows_strides(grad),
            n_k,
            places,
            key_heads,
            WIDTH=width,
            PAD=pad,
            KEYS=keys,
            num_warps=4,
            enable_fp_fusion=True,
        )


def longest_segment(blocks: Tensor, num_blocks: int, key_heads: int, rows: int) -> int:
    """Readers of the longest segment: eight times the mean, and never under 512 queries.

    So the parts of hot blocks never need more memory than a quarter of the keys' and values'
    float32 copies, and no program is much longer than the others.
    """
    readers = blocks.shape[1:].numel() // min(blocks.shape[1], key_heads)
    return max(-(-8 * readers // num_blocks), -(-512 // rows))
