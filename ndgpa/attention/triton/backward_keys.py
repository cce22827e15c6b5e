"""Gradients of key, value and key bias: the key-major backward kernel.

    p_xy = exp(logit_xy - max_x) / sum_x   recomputed from the same products as in the forward
    g_xy = p_xy (grad_out_x . v_y - w_x)   the gradient of a logit; w as `backward_queries`

One program per segment of the readers of a key block (`inverse`). What it may not write to its
place at once is added up afterwards (`sums`): segments of hot blocks, and places of one site in
several blocks. Letters and prefixes as in `tiles`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.triton.inputs import Inputs
from ndgpa.attention.triton.inverse import inverse
from ndgpa.attention.triton.launch import feature_tiles
from ndgpa.attention.triton.sums import add_parts, add_places, by_place
from ndgpa.attention.triton.tiles import (
    LOG2_E,
    Tile,
    ceil_div,
    key_major_tile,
    load_rest,
    load_rows,
    logits,
    precision,
    problem_of,
    products,
    query_rows,
    rows_strides,
    store_rows,
    tiles_per_slot,
    weights,
)

_LOG2_E = tl.constexpr(LOG2_E)


# Sizes of which no kernel is compiled anew, as in `launch`.
SIZES = (
    "s_lse_b",
    "s_lse_h",
    "s_table_b",
    "s_table_h",
    "n_k",
    "n_out",
    "E",
    "S",
    "parts",
)


@triton.jit(do_not_specialize=SIZES)
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
    p_heads,  # (L, E) int32, or None
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
    s_lse_b,
    s_lse_h,
    s_table_b,
    s_table_h,  # 0 where key heads share a row of the tables
    n_k,
    n_out,
    E,
    S,
    parts,
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
    TILES_PER_BLOCK: tl.constexpr,
    PART: tl.constexpr,  # d + dv + 1, aligned
    BY_PLACE: tl.constexpr,  # gradients of places of blocks, not of sites
    WHOLE: tl.constexpr,  # no tile has rows or keys left over
    FOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SITES: tl.constexpr = GROUP * X  # rows of a reader
    program = tl.program_id(0)
    key_tile = program % TILES_PER_BLOCK
    b = program // (TILES_PER_BLOCK * S)
    segment = program // TILES_PER_BLOCK - b * S
    b = b.to(tl.int64)
    key_head = tl.program_id(1).to(tl.int64)
    key_heads = tl.num_programs(1)
    table = b * s_table_b + key_head * s_table_h
    p_segment = p_segments + (table * S + segment) * 4
    block = tl.load(p_segment).to(tl.int64)
    if block < 0:
        return
    first = tl.load(p_segment + 1)
    end = tl.load(p_segment + 2)
    part = tl.load(p_segment + 3).to(tl.int64)

    # (KEYS,)
    o_place = key_tile * KEYS + tl.arange(0, KEYS)
    if WHOLE:
        m_exists = tl.full((KEYS,), 1, tl.int1)
        o_key = tl.load(p_key_sites + block * R + o_place)
    else:
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
    b_key_rest = load_rest(p_rows, m_load, D, PAD_D, REST_D)
    p_rows = p_value + b * s_value_b + key_head * s_value_h + o_key * s_value_n
    b_value = load_rows(p_rows, m_load, DV, PAD_DV)
    b_value_rest = load_rest(p_rows, m_load, DV, PAD_DV, REST_DV)

    # (PAD_D, KEYS), (PAD_DV, KEYS): features fill the matrix units, however few keys there are
    b_grad_key = tl.zeros((PAD_D, KEYS), tl.float32)
    b_grad_value = tl.zeros((PAD_DV, KEYS), tl.float32)
    if REST_D:
        b_grad_key_rest = tl.zeros((REST_D, KEYS), tl.float32)
    if REST_DV:
        b_grad_value_rest = tl.zeros((REST_DV, KEYS), tl.float32)
    b_grad_bias = tl.zeros((KEYS,), tl.float32)
    # Rows that do not exist have a weight of 0, and keys that do not are not written.
    m_any = tl.full((1, 1), 1, tl.int1)
    readers = table * E + first
    count = (end - first) * SITES
    for start in range(0, count, ROWS):
        # (ROWS,)
        o_row = start + tl.arange(0, ROWS)
        m_row = o_row < count
        if SITES % ROWS == 0:  # all of one reader, a scalar
            o_reader, m_reader = start // SITES, start < count
            o_row = start % SITES + tl.arange(0, ROWS)
        else:
            o_reader, m_reader = o_row // SITES, m_row
            o_row = o_row % SITES
        cell = tl.load(p_cells + readers + o_reader, mask=m_reader, other=0).to(tl.int64)
        if WHOLE:
            m_row = tl.full((ROWS,), 1, tl.int1)
        o_head, o_site, m_row = query_rows(p_cell_sites + cell * X, o_row, m_row, X, GROUP, WHOLE)
        o_head += key_head * (TILES * GROUP)
        if p_heads is not None:
            tile = tl.load(p_heads + readers + o_reader, mask=m_reader, other=0)
            o_head += GROUP * tile.to(tl.int64)
        o_query = o_head * s_lse_h + o_site
        p_max = p_norm + 2 * b * s_lse_b + o_query
        b_max = tl.load(p_max, mask=m_row, other=0.0)
        b_norm = tl.load(p_max + s_lse_b, mask=m_row, other=0.0)
        b_mean = tl.load(p_mean + b * s_lse_b + o_query, mask=m_row, other=0.0)
        if p_query_time is not None:
            # A query that is not finite, and on which nothing depends, sends no gradient.
            m_row = m_row & ((b_norm == b_norm) | (b_mean != b_mean))
            b_max = tl.where(m_row, b_max, 0.0)
            b_norm = tl.where(m_row, b_norm, 0.0)
        b_added = b_bias[None, :]
        if p_biases is not None:
            # A row that does not exist has a weight of 0, and 0 inf is NaN.
            b_slot = tl.load(p_biases + readers + o_reader, mask=m_reader, other=0.0)
            b_added += tl.where(m_row, b_slot * _LOG2_E, 0.0)[:, None]
        m_seen = m_any
        if p_key_bias is not None or p_query_time is not None:
            m_seen = m_key[None, :] & m_row[:, None]
        if p_query_time is not None:
            b_now = tl.load(p_query_time + o_site)
            m_seen = m_seen & (b_then[None, :] <= b_now[:, None])
        # (ROWS, PAD_D), (ROWS, PAD_DV), (ROWS, KEYS)
        p_queries = p_query + b * s_query_b + o_head * s_query_h + o_site * s_query_n
        b_query = load_rows(p_queries, m_row, D, PAD_D)
        b_query_rest = load_rest(p_queries, m_row, D, PAD_D, REST_D)
        b_s = products(b_query, b_key, b_query_rest, b_key_rest, PRECISION)
        b_s = logits(b_s, scale_2, b_added, m_seen, FOLD)
        b_p = weights(b_s, scale_2, b_max[:, None], FOLD) * b_norm[:, None]
        p_grads = p_grad_out + b * s_grad_out_b + o_head * s_grad_out_h + o_site * s_grad_out_n
        b_grad_out = load_rows(p_grads, m_row, DV, PAD_DV)
        b_grad_out_rest = load_rest(p_grads, m_row, DV, PAD_DV, REST_DV)
        b_weight = b_p.to(b_grad_out.dtype)
        b_grad_value = tl.dot(
            tl.trans(b_grad_out), b_weight, b_grad_value, input_precision=PRECISION
        )
        if REST_DV:
            b_grad_value_rest = tl.dot(
                tl.trans(b_grad_out_rest), b_weight, b_grad_value_rest, input_precision=PRECISION
            )
        b_slope = products(b_grad_out, b_value, b_grad_out_rest, b_value_rest, PRECISION)
        b_g = b_p * (b_slope - b_mean[:, None])
        b_weight = b_g.to(b_query.dtype)
        b_grad_key = tl.dot(tl.trans(b_query), b_weight, b_grad_key, input_precision=PRECISION)
        if REST_D:
            b_grad_key_rest = tl.dot(
                tl.trans(b_query_rest), b_weight, b_grad_key_rest, input_precision=PRECISION
            )
        if p_grad_bias is not None:
            b_grad_bias += tl.sum(b_g, 0)

    b_grad_key *= scale
    if REST_D:
        b_grad_key_rest *= scale
    if part < 0:
        o_out = o_key
        if BY_PLACE:
            o_out = block * R + o_place
        p_grad_keys = p_grad_key + b * s_grad_key_b + key_head * s_grad_key_h
        p_grad_keys += o_out * s_grad_key_n
        p_grad_values = p_grad_value + b * s_grad_value_b + key_head * s_grad_value_h
        p_grad_values += o_out * s_grad_value_n
        store_rows(p_grad_keys, tl.trans(b_grad_key), m_exists, D, PAD_D)
        store_rows(p_grad_values, tl.trans(b_grad_value), m_exists, DV, PAD_DV)
        if REST_D:
            store_rows(p_grad_keys, tl.trans(b_grad_key_rest), m_exists, D, REST_D, PAD_D)
        if REST_DV:
            store_rows(p_grad_values, tl.trans(b_grad_value_rest), m_exists, DV, REST_DV, PAD_DV)
        if p_grad_bias is not None:
            p_bias = p_grad_bias + (b * key_heads + key_head) * n_out
            tl.store(p_bias + o_out, b_grad_bias, mask=m_exists)
    else:
        p_part = p_parts + (((b * key_heads + key_head) * parts + part) * R + o_place) * PART
        store_rows(p_part, tl.trans(b_grad_key), m_exists, D, PAD_D)
        store_rows(p_part + D, tl.trans(b_grad_value), m_exists, DV, PAD_DV)
        if REST_D:
            store_rows(p_part, tl.trans(b_grad_key_rest), m_exists, D, REST_D, PAD_D)
        if REST_DV:
            store_rows(p_part + D, tl.trans(b_grad_value_rest), m_exists, DV, REST_DV, PAD_DV)
        if p_grad_bias is not None:
            tl.store(p_part + D + DV, b_grad_bias, mask=m_exists)


def backward_keys(
    given: Inputs,
    *,
    grad_out: Tensor,
    norm: Tensor,
    mean: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    grad_bias: Tensor | None,
    tile: Tile | None = None,
    longest: int | None = None,
) -> None:
    """Write the gradients of key, value and key bias.

    Args:
        given: As `Inputs.laid_out` gives them.
        norm: That of the forward.
        mean: That of `backward_queries`.
        longest: That of `inverse`.
    """
    grads = [x for x in (grad_key, grad_value, grad_bias) if x is not None]
    if not given.partition:
        grad_key, grad_value, *biases = [by_place(x, given.key_sites) for x in grads]
        grad_bias = biases[0] if biases else None
    (batch, heads, n, d), (_, key_heads, n_k, dv) = given.query.shape, given.value.shape
    places, (num_blocks, sites) = given.cell_sites.shape[1], given.key_sites.shape
    group = heads // given.tiles
    tile = tile or key_major_tile(problem_of(given))
    if longest is None:
        longest = longest_segment(given.blocks, num_blocks, key_heads, group * places)
    readers = inverse(given.blocks, given.slot_bias, num_blocks, key_heads, longest)
    per_block, part_width = tiles_per_slot(sites, tile.keys), ceil_div(d + dv + 1, 4) * 4
    parts = mean.new_empty(batch, key_heads, readers.parts, sites, part_width)
    grid = per_block * readers.segments.shape[1] * batch, key_heads
    if grid[0] == 0:
        return
    table_heads = readers.cells.shape[0] // batch
    shape = {
        "R": sites,
        "D": d,
        "DV": dv,
        "TILES_PER_BLOCK": per_block,
        "PART": part_width,
        "BY_PLACE": not given.partition,
    }
    key_major_kernel[grid](
        given.query,
        given.key,
        given.value,
        grad_out,
        norm,
        mean,
        given.key_bias,
        given.cell_sites,
        given.key_sites,
        given.query_time,
        given.key_time,
        readers.cells,
        readers.heads,
        readers.biases,
        readers.segments,
        grad_key,
        grad_value,
        grad_bias,
        parts,
        *rows_strides(given.query),
        *rows_strides(given.key),
        *rows_strides(given.value),
        *rows_strides(grad_out),
        *rows_strides(grad_key),
        *rows_strides(grad_value),
        heads * n,
        n,
        table_heads,
        0 if table_heads == 1 else 1,
        n_k,
        grad_key.shape[2],
        readers.cells.shape[1],
        readers.segments.shape[1],
        readers.parts,
        given.scale,
        given.scale * LOG2_E,
        X=places,
        GROUP=group,
        TILES=heads // group // key_heads,
        ROWS=tile.rows,
        KEYS=tile.keys,
        WHOLE=given.even and group * places % tile.rows == 0 and sites % tile.keys == 0,
        FOLD=given.has_no_bias and given.scale > 0,
        PRECISION=precision(given.query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
        **feature_tiles(d, dv),
        **shape,
    )
    of_places = (grad_key, grad_value, grad_bias)
    add_parts(parts, readers, given.key_sites, of_places, tile.keys, shape)
    if not given.partition:
        add_places([x for x in of_places if x is not None], given.key_sites, grads)


def longest_segment(blocks: Tensor, num_blocks: int, key_heads: int, rows: int) -> int:
    """Readers of the longest segment: eight times the mean, and never under 512 queries.

    So the parts of hot blocks never need more memory than a quarter of the keys' and values'
    float32 copies, and no program is much longer than the others.
    """
    readers = blocks.shape[1:].numel() // min(blocks.shape[1], key_heads)
    return max(-(-8 * readers // num_blocks), -(-512 // rows))
