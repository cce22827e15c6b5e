"""Relevance of key blocks for cells, without the coarse score matrix.

The scores are made tile by tile, and their softmax is summed over the queries of a cell and the
heads of a selection; of every few neighbouring key blocks the largest sum is written besides. Where
a cell has one query, its softmax orders as its logits do, and those are written. Letters:
`triton_products`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.selection.relevance import CoarseCells
from ndgpa.selection.triton_products import (
    added,
    candidates,
    load_means,
    rows_of_tile,
    scores,
    sizes_by_row,
    tile_of,
)

_LOG2_E = tl.constexpr(1.4426950408889634)
# Key blocks whose largest score is written besides.
GROUP = 16
# Tiles of keys that one program visits.
_KEY_TILES = 16


@triton.jit
def rows_of_part(
    p_query,
    p_weight,
    p_lse,
    head,
    C,
    o_cell,
    o_place,
    last_cell,
    P: tl.constexpr,
    ROW: tl.constexpr,
):
    """Rows of coarse queries, which take part, their weights, and log-sum-exps less log weights.

    A query whose log-sum-exp is infinite takes no part; one row of zeros has as good a product.
    """
    o_row = o_cell * P + o_place
    m_row = (o_place < P) & (o_cell < last_cell)
    b_weight = tl.load(p_weight + o_row, mask=m_row, other=0.0)
    b_shift = b_weight
    if p_lse is not None:
        b_lse = tl.load(p_lse + head * C * P + o_row, mask=m_row, other=float("inf"))
        m_row = m_row & (b_lse != float("inf"))
        b_shift = b_lse - tl.log2(b_weight)
    return p_query + head * C * P * ROW + o_row * ROW, m_row, b_weight, b_shift


@triton.jit
def relevance_kernel(
    p_query,  # (L * gk * g, C * P, d), or (..., 2, d); contiguous as all that follow
    p_key,  # (L * gk, B, d), or (..., 2, d)
    p_bias,  # (L * gk, B), or None
    p_log_size,  # (L, B), or None
    p_weight,  # (b, C, P), batches `s_weight` apart
    p_cell_group,  # (C,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_cell_time,  # (C,) int64, the earliest of the cell, or None
    p_key_time,  # (B,) int64, the latest of the block, or None
    p_lse,  # (L * gk * g, C * P) in base 2; KIND "mass" only
    p_out,  # (rows held, cells held, B): rows of L from `first_row`, cells from `first_cell`
    p_largest,  # (rows held, cells held, T)
    s_weight,
    selections,  # of a batch
    first_row,
    first_cell,
    cells_held,
    C,
    B,
    T,
    scale,
    KIND: tl.constexpr,  # sums of "mass", sums of "logit", or the one logit ("single")
    G: tl.constexpr,
    GK: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    ROW: tl.constexpr,  # elements of a row of means: D, or 2 D
    WIDTH: tl.constexpr,
    CELLS: tl.constexpr,
    PLACES: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_TILES: tl.constexpr,
    GROUP: tl.constexpr,
    FULL_KEYS: tl.constexpr,  # no tile is partly empty
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = CELLS * PLACES
    PARTS: tl.constexpr = (P + PLACES - 1) // PLACES
    # Places of a cell are the columns of a product that one thread holds: the lowest bit of a
    # column, then those above the third, then the two between, which are four threads'.
    LOW: tl.constexpr = min(PLACES, 2)
    HIGH: tl.constexpr = min(PLACES // LOW, ROWS // 8)
    REST: tl.constexpr = PLACES // (LOW * HIGH)
    cell_tiles = tl.cdiv(cells_held, CELLS)
    # Several programs share the keys of a cell.
    shares = tl.cdiv(B, KEYS * KEY_TILES)
    program = tl.program_id(0)
    first_of = first_cell + program % cell_tiles * CELLS
    share = program // cell_tiles % shares
    row_held = (program // cell_tiles // shares).to(tl.int64)
    last_cell = first_cell + cells_held
    row = first_row + row_held
    p_weight += row // selections * s_weight
    # (ROWS,), (CELLS,)
    o_column = tl.arange(0, ROWS)
    o_low, o_thread, o_high = o_column % 2, o_column // 2 % 4, o_column // 8
    o_in = (o_thread % REST * HIGH + o_high % HIGH) * LOW + o_low % LOW
    o_cell = (o_high // HIGH * (4 // REST) + o_thread // REST) * (2 // LOW) + o_low // LOW
    o_cell += first_of
    o_of = first_of + tl.arange(0, CELLS)
    m_of = o_of < last_cell
    b_group = o_of
    b_now = o_of
    if p_cell_group is not None:
        b_group = tl.load(p_cell_group + o_of, mask=m_of, other=0)
    if p_cell_time is not None:
        b_now = tl.load(p_cell_time + o_of, mask=m_of, other=0)
    if p_log_size is not None:
        p_log_size += row * B
    SINGLE: tl.constexpr = GK * G * PARTS == 1
    if SINGLE:
        p_rows, m_row, b_weight, b_shift = rows_of_part(
            p_query, p_weight, p_lse, row, C, o_cell, o_in, last_cell, P, ROW
        )
        b_query, b_query_low = load_means(p_rows, m_row, 0, D, WIDTH, False)
    first_key = share * KEYS * KEY_TILES
    p_of = p_out + (row_held * cells_held - first_cell) * B + o_of.to(tl.int64) * B
    p_group = p_largest + (row_held * cells_held - first_cell) * T + o_of.to(tl.int64) * T
    for start in range(first_key, tl.minimum(first_key + KEYS * KEY_TILES, B), KEYS):
        o_key = start + tl.arange(0, KEYS)
        m_key = o_key < B
        m_hidden = o_key >= B
        b_sum = tl.zeros((KEYS, CELLS), tl.float32)
        for part in range(0, GK * G * PARTS):
            head = row * GK * G + part // PARTS
            if not SINGLE:
                p_rows, m_row, b_weight, b_shift = rows_of_part(
                    p_query,
                    p_weight,
                    p_lse,
                    head,
                    C,
                    o_cell,
                    part % PARTS * PLACES + o_in,
                    last_cell,
                    P,
                    ROW,
                )
                b_query, b_query_low = load_means(p_rows, m_row, 0, D, WIDTH, False)
            # (KEYS, ROWS)
            b_s = scores(
                b_query,
                b_query_low,
                p_rows,
                m_row,
                p_key + head // G * B * ROW + o_key * ROW,
                m_key,
                D,
                PAD_D,
                WIDTH,
                FULL_KEYS,
                True,
                PRECISION,
            )
            p_biases = p_bias
            if p_bias is not None:
                p_biases = p_bias + head // G * B
            b_bias, b_log_size = added(p_biases, p_log_size, o_key, m_key)
            m_hidden = m_hidden | (b_log_size == float("-inf"))
            b_s *= scale
            if KIND == "logit":
                b_r = b_s + b_bias[:, None] * b_weight[None, :]
                b_r = tl.where(b_r == b_r, b_r, 0.0)
            else:
                if p_bias is not None or p_log_size is not None:
                    b_s += (b_bias + b_log_size)[:, None]
                b_s *= _LOG2_E
                if KIND == "mass":
                    b_r = tl.exp2(b_s - b_shift[None, :])
                else:  # infinite where the softmax is no number, which makes it 0 everywhere
                    b_r = tl.where((b_s == b_s) & (b_weight > 0)[None, :], b_s, float("inf"))
                    b_r = tl.maximum(b_r, -3.0e38)
            b_r = tl.reshape(b_r, (KEYS, ROWS // 8 // HIGH, HIGH, 4 // REST, REST, 2 // LOW, LOW))
            b_r = tl.reshape(tl.sum(tl.sum(tl.sum(b_r, 6), 4), 2), (KEYS, CELLS))
            b_sum += tl.where(b_r == b_r, b_r, 0.0)
        m_seen = candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key)
        b_sum = tl.where(b_sum == b_sum, b_sum, 0.0)
        b_sum = tl.where(m_seen & ~m_hidden[:, None], b_sum, float("-inf"))
        m = m_of[None, :] & m_key[:, None]
        tl.store(p_of[None, :] + o_key[:, None], b_sum, mask=m)
        # (KEYS // GROUP, CELLS)
        b_largest = tl.max(tl.reshape(b_sum, (KEYS // GROUP, GROUP, CELLS)), 1)
        o_group = start // GROUP + tl.arange(0, KEYS // GROUP)
        m = m_of[None, :] & (o_group < T)[:, None]
        tl.store(p_group[None, :] + o_group[:, None], b_largest, mask=m)


@on_its_device
def write_relevance(
    scores: Tensor,  # (rows held, cells held, B), written
    largest: Tensor,  # (rows held, cells held, T), written
    cells: CoarseCells,  # contiguous but for the batches of `weight`
    lse: Tensor | None,  # (b, h, C, P), of kind "mass"
    kind: str,  # sums of "mass", sums of "logit", or the one logit ("single")
    first_row: int,
    first_cell: int,
    key_heads: int,  # of one selection
) -> None:
    heads, num_cells, places = cells.query.shape[1:4]
    rows_held, cells_held, num_blocks = scores.shape
    log_size = sizes_by_row(cells, key_heads)
    rows = rows_of_tile(cells.key)
    per_cell = min(triton.next_power_of_2(places), rows)
    tile = tile_of(cells.key)
    shares = triton.cdiv(num_blocks, tile["KEYS"] * _KEY_TILES)
    programs = triton.cdiv(cells_held, rows // per_cell) * shares * rows_held
    relevance_kernel[(programs,)](
        cells.query,
        cells.key,
        cells.bias,
        log_size,
        cells.weight,
        cells.cell_group,
        cells.key_group,
        cells.cell_time,
        cells.key_time,
        lse,
        scores,
        largest,
        cells.weight.stride(0),
        cells.key.shape[1] // key_heads,
        first_row,
        first_cell,
        cells_held,
        num_cells,
        num_blocks,
        largest.shape[2],
        cells.scale,
        KIND=kind,
        G=heads // cells.key.shape[1],
        GK=key_heads,
        P=places,
        CELLS=rows // per_cell,
        PLACES=per_cell,
        KEY_TILES=_KEY_TILES,
        GROUP=GROUP,
        **tile,
    )
