"""The log-sum-exp of each coarse query, without the coarse score matrix.

Letters as in `triton_products`.
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


@triton.jit
def lse_kernel(
    p_query,  # (L * gk * g, C * P, d), or (..., 2, d); contiguous as all that follow
    p_key,  # (L * gk, B, d), or (..., 2, d)
    p_bias,  # (L * gk, B), or None
    p_log_size,  # (L, B), or None
    p_cell_group,  # (C,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_cell_time,  # (C,) int64, the earliest of the cell, or None
    p_key_time,  # (B,) int64, the latest of the block, or None
    p_lse,  # (L * gk * g, C * P), in base 2
    C,
    B,
    scale,
    G: tl.constexpr,
    GK: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    ROW: tl.constexpr,  # elements of a row of means: D, or 2 D
    WIDTH: tl.constexpr,  # features of a product
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    FULL_ROWS: tl.constexpr,  # no tile is partly empty
    FULL_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(C * P, ROWS)
    program = tl.program_id(0)
    head = (program // tiles).to(tl.int64)
    # (ROWS,), (ROWS, PAD_D)
    o_row = program % tiles * ROWS + tl.arange(0, ROWS)
    m_row = o_row < C * P
    p_rows = p_query + head * C * P * ROW + o_row * ROW
    b_query, b_query_low = load_means(p_rows, m_row, 0, D, WIDTH, FULL_ROWS)
    b_group = o_row
    b_now = o_row
    if p_cell_group is not None:
        b_group = tl.load(p_cell_group + o_row // P, mask=m_row, other=0)
    if p_cell_time is not None:
        b_now = tl.load(p_cell_time + o_row // P, mask=m_row, other=0)
    if p_bias is not None:
        p_bias += head // G * B
    if p_log_size is not None:
        p_log_size += head // (G * GK) * B
    b_max = tl.full((ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    p_keys = p_key + head // G * B * ROW + tl.arange(0, KEYS) * ROW
    for start in range(0, B, KEYS):
        # (KEYS,), (ROWS, KEYS)
        o_key = start + tl.arange(0, KEYS)
        m_key = o_key < B
        b_s = scores(
            b_query,
            b_query_low,
            p_rows,
            m_row,
            p_keys,
            m_key,
            D,
            PAD_D,
            WIDTH,
            FULL_KEYS,
            False,
            PRECISION,
        )
        p_keys += KEYS * ROW
        b_s *= scale
        if p_bias is not None or p_log_size is not None:
            b_bias, b_log_size = added(p_bias, p_log_size, o_key, m_key)
            b_s += (b_bias + b_log_size)[None, :]
        b_s *= _LOG2_E
        if not FULL_KEYS or p_key_group is not None or p_key_time is not None:
            m_seen = candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key)
            b_s = tl.where(tl.trans(m_seen), b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_sum = b_sum * tl.exp2(b_max - b_base) + tl.sum(tl.exp2(b_s - b_base[:, None]), 1)
        b_max = b_new_max
    m_masked = b_sum == 0
    b_lse = tl.where(m_masked, 0.0, b_max + tl.log2(tl.where(m_masked, 1.0, b_sum)))
    b_lse = tl.where(b_lse == b_lse, b_lse, float("inf"))  # takes no part
    tl.store(p_lse + head * C * P + o_row, b_lse, mask=m_row)


@on_its_device
def write_log_sum_exp(
    lse: Tensor,  # (b, h, C, P), written: in base 2, 0 where nothing is seen, inf for no number
    cells: CoarseCells,  # contiguous but for the batches of `weight`
    key_heads: int,  # of one selection
) -> None:
    batch, heads, num_cells, places = lse.shape
    log_size = sizes_by_row(cells, key_heads)
    tile = tile_of(cells.key)
    rows = min(max(triton.next_power_of_2(num_cells * places), 16), rows_of_tile(cells.key))
    lse_kernel[(batch * heads * triton.cdiv(num_cells * places, rows),)](
        cells.query,
        cells.key,
        cells.bias,
        log_size,
        cells.cell_group,
        cells.key_group,
        cells.cell_time,
        cells.key_time,
        lse,
        num_cells,
        cells.key.shape[2],
        cells.scale,
        G=heads // cells.key.shape[1],
        GK=key_heads,
        P=places,
        ROWS=rows,
        FULL_ROWS=num_cells * places % rows == 0,
        **tile,
    )
