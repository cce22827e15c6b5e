"""Relevance of key blocks for cells, without the coarse score matrix.

The first kernel takes the log-sum-exp of each coarse query. The second makes the scores again, tile
by tile, and sums their softmax over the queries of a cell and the heads of a selection.

Letters: b batch, h heads, gk key heads of a selection, g query heads of a key head, C cells, P
places of a cell, B key blocks, d features, L pairs of batch and selection head. Products are
float32, on matrix units by the sum of three products in tf32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.selection.relevance import CoarseCells

_LOG2_E = tl.constexpr(1.4426950408889634)
PRECISION = "tf32x3"
# Coarse queries of a tile.
_ROWS = 64
# Tiles of keys that one program of the second kernel visits.
_KEY_TILES = 16


@triton.jit
def load_features(p_rows, m_row, first, D: tl.constexpr, WIDTH: tl.constexpr):
    """Features of rows from `first` on, zeros beyond: (rows, WIDTH)."""
    o_feature = first + tl.arange(0, WIDTH)
    m = m_row[:, None] & (o_feature < D)[None, :]
    return tl.load(p_rows[:, None] + o_feature[None, :], mask=m, other=0.0)


@triton.jit
def scores(
    b_query,  # (rows, PAD_D), used where one piece holds all features
    p_query_rows,
    m_row,
    p_key_rows,
    m_key,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of query and key rows, WIDTH features at a time: (rows, keys)."""
    if WIDTH == PAD_D:
        b_key = load_features(p_key_rows, m_key, 0, D, WIDTH)
        b_s = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION)
    else:
        b_s = tl.zeros((p_query_rows.shape[0], p_key_rows.shape[0]), tl.float32)
        for first in range(0, PAD_D, WIDTH):
            b_left = load_features(p_query_rows, m_row, first, D, WIDTH)
            b_right = load_features(p_key_rows, m_key, first, D, WIDTH)
            b_s = tl.dot(b_left, tl.trans(b_right), b_s, input_precision=PRECISION)
    return b_s


@triton.jit
def key_biases(
    p_bias,  # (L * gk, B), or None
    p_log_size,  # (L, B), or None
    head,  # of L * gk
    row,  # of L
    o_key,
    m_key,
    B,
):
    """Bias and log size of the keys of a tile."""
    b_bias = tl.zeros_like(o_key).to(tl.float32)
    b_log_size = b_bias
    if p_bias is not None:
        b_bias = tl.load(p_bias + head * B + o_key, mask=m_key, other=0.0)
    if p_log_size is not None:
        b_log_size = tl.load(p_log_size + row * B + o_key, mask=m_key, other=float("-inf"))
    return b_bias, b_log_size


@triton.jit
def candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key):
    """Which keys of a tile exist, are of the group of a row, and past to it: (1 or rows, keys)."""
    m_seen = m_key[None, :]
    if p_key_group is not None:
        b_other = tl.load(p_key_group + o_key, mask=m_key, other=-1)
        m_seen = m_seen & (b_group[:, None] == b_other[None, :])
    if p_key_time is not None:
        b_then = tl.load(p_key_time + o_key, mask=m_key, other=0)
        m_seen = m_seen & (b_then[None, :] <= b_now[:, None])
    return m_seen


@triton.jit
def lse_kernel(
    p_query,  # (L * gk * g, C * P, d) float32, contiguous as all that follow
    p_key,  # (L * gk, B, d)
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
    WIDTH: tl.constexpr,  # features of a product
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(C * P, ROWS)
    program = tl.program_id(0).to(tl.int64)
    head = program // tiles
    # (ROWS,), (ROWS, PAD_D)
    o_row = program % tiles * ROWS + tl.arange(0, ROWS)
    m_row = o_row < C * P
    p_rows = p_query + (head * C * P + o_row) * D
    b_query = load_features(p_rows, m_row, 0, D, WIDTH)
    b_group = o_row
    b_now = o_row
    if p_cell_group is not None:
        b_group = tl.load(p_cell_group + o_row // P, mask=m_row, other=0)
    if p_cell_time is not None:
        b_now = tl.load(p_cell_time + o_row // P, mask=m_row, other=0)
    b_max = tl.full((ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((ROWS,), tl.float32)
    for start in range(0, B, KEYS):
        # (KEYS,), (ROWS, KEYS)
        o_key = start + tl.arange(0, KEYS)
        m_key = o_key < B
        b_bias, b_log_size = key_biases(
            p_bias, p_log_size, head // G, head // (G * GK), o_key, m_key, B
        )
        p_keys = p_key + (head // G * B + o_key) * D
        b_s = scores(b_query, p_rows, m_row, p_keys, m_key, D, PAD_D, WIDTH, PRECISION)
        b_s = (b_s * scale + (b_bias + b_log_size)[None, :]) * _LOG2_E
        m_seen = candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key)
        b_s = tl.where(m_seen, b_s, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_sum = b_sum * tl.exp2(b_max - b_base) + tl.sum(tl.exp2(b_s - b_base[:, None]), 1)
        b_max = b_new_max
    m_masked = b_sum == 0
    b_lse = tl.where(m_masked, 0.0, b_max + tl.log2(tl.where(m_masked, 1.0, b_sum)))
    tl.store(p_lse + head * C * P + o_row, b_lse, mask=m_row)


@triton.jit
def relevance_kernel(
    p_query,  # (L * gk * g, C * P, d) float32, contiguous as all that follow
    p_key,  # (L * gk, B, d)
    p_bias,  # (L * gk, B), or None
    p_log_size,  # (L, B), or None
    p_weight,  # (b, C, P), batches `s_weight` apart
    p_cell_group,  # (C,) int64, or None
    p_key_group,  # (B,) int64, or None
    p_cell_time,  # (C,) int64, the earliest of the cell, or None
    p_key_time,  # (B,) int64, the latest of the block, or None
    p_lse,  # (L * gk * g, C * P) in base 2, or None for logits in place of softmax weights
    p_out,  # (rows held, cells held, B): rows of L from `first_row`, cells from `first_cell`
    s_weight,
    selections,  # of a batch
    first_row,
    first_cell,
    cells_held,
    C,
    B,
    scale,
    G: tl.constexpr,
    GK: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    WIDTH: tl.constexpr,
    CELLS: tl.constexpr,
    PLACES: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = CELLS * PLACES
    PARTS: tl.constexpr = (P + PLACES - 1) // PLACES
    SINGLE: tl.constexpr = GK * G * PARTS == 1
    last_cell = first_cell + cells_held
    # Several programs share the keys of a cell.
    cell_tiles = tl.cdiv(cells_held, CELLS)
    shares = tl.cdiv(B, KEYS * KEY_TILES)
    program = tl.program_id(0).to(tl.int64)
    cell_tile = program % cell_tiles
    share = program // cell_tiles % shares
    row_held = program // cell_tiles // shares
    row = first_row + row_held
    p_weight += row // selections * s_weight
    # (ROWS,), (CELLS,)
    o_in = tl.arange(0, ROWS)
    o_cell = first_cell + cell_tile * CELLS + o_in // PLACES
    o_of = first_cell + cell_tile * CELLS + tl.arange(0, CELLS)
    m_of = o_of < last_cell
    b_group = o_of
    b_now = o_of
    if p_cell_group is not None:
        b_group = tl.load(p_cell_group + o_of, mask=m_of, other=0)
    if p_cell_time is not None:
        b_now = tl.load(p_cell_time + o_of, mask=m_of, other=0)
    if SINGLE:
        o_only = o_cell * P + o_in % PLACES
        m_only = (o_in % PLACES < P) & (o_cell < last_cell)
        b_query = load_features(p_query + (row * C * P + o_only) * D, m_only, 0, D, WIDTH)
    first_key = share * KEYS * KEY_TILES
    for start in range(first_key, tl.minimum(first_key + KEYS * KEY_TILES, B), KEYS):
        o_key = start + tl.arange(0, KEYS)
        m_key = o_key < B
        m_hidden = o_key >= B
        b_sum = tl.zeros((CELLS, KEYS), tl.float32)
        for part in range(0, GK * G * PARTS):
            head = row * GK * G + part // PARTS
            # (ROWS,), (KEYS,), (ROWS, KEYS)
            o_place = part % PARTS * PLACES + o_in % PLACES
            m_row = (o_place < P) & (o_cell < last_cell)
            o_row = o_cell * P + o_place
            p_rows = p_query + (head * C * P + o_row) * D
            if not SINGLE:
                b_query = load_features(p_rows, m_row, 0, D, WIDTH)
            b_weight = tl.load(p_weight + o_row, mask=m_row, other=0.0)
            b_bias, b_log_size = key_biases(p_bias, p_log_size, head // G, row, o_key, m_key, B)
            m_hidden = m_hidden | (b_log_size == float("-inf"))
            p_keys = p_key + (head // G * B + o_key) * D
            b_s = scores(b_query, p_rows, m_row, p_keys, m_key, D, PAD_D, WIDTH, PRECISION)
            b_s *= scale
            if p_lse is not None:
                b_lse = tl.load(p_lse + head * C * P + o_row, mask=m_row, other=0.0)
                b_s = (b_s + (b_bias + b_log_size)[None, :]) * _LOG2_E
                b_r = tl.exp2(b_s - b_lse[:, None])
                b_r = tl.where(b_r == b_r, b_r, 0.0) * b_weight[:, None]
            else:
                b_r = b_s + b_bias[None, :] * b_weight[:, None]
                b_r = tl.where(b_r == b_r, b_r, 0.0)
            if PLACES == 1:
                b_sum += b_r
            else:
                b_sum += tl.sum(tl.reshape(b_r, (CELLS, PLACES, KEYS)), 1)
        b_sum = tl.where(b_sum == b_sum, b_sum, 0.0)
        m_seen = candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key)
        b_sum = tl.where(m_seen & ~m_hidden[None, :], b_sum, float("-inf"))
        p_of = p_out + (row_held * cells_held + o_of - first_cell) * B
        m = m_of[:, None] & m_key[None, :]
        tl.store(p_of[:, None] + o_key[None, :], b_sum, mask=m)


@on_its_device
def write_log_sum_exp(
    lse: Tensor,  # (b, h, C, P), written: in base 2, 0 where nothing is seen
    cells: CoarseCells,  # float32, contiguous but for the batches of `weight`
    key_heads: int,  # of one selection
) -> None:
    batch, heads, num_cells, places = lse.shape
    log_size = _by_row(cells, key_heads)
    rows = min(max(triton.next_power_of_2(num_cells * places), 16), _ROWS)
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
        **_tile(cells.key),
    )


@on_its_device
def write_relevance(
    scores: Tensor,  # (rows held, cells held, B), written
    cells: CoarseCells,  # float32, contiguous but for the batches of `weight`
    lse: Tensor | None,  # (b, h, C, P), or None for logits in place of softmax weights
    first_row: int,
    first_cell: int,
    key_heads: int,  # of one selection
) -> None:
    heads, num_cells, places = cells.query.shape[1:4]
    rows_held, cells_held, num_blocks = scores.shape
    log_size = _by_row(cells, key_heads)
    per_cell = min(triton.next_power_of_2(places), _ROWS)
    tile = _tile(cells.key)
    shares = triton.cdiv(num_blocks, tile["KEYS"] * _KEY_TILES)
    programs = triton.cdiv(cells_held, _ROWS // per_cell) * shares * rows_held
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
        cells.weight.stride(0),
        cells.key.shape[1] // key_heads,
        first_row,
        first_cell,
        cells_held,
        num_cells,
        num_blocks,
        cells.scale,
        G=heads // cells.key.shape[1],
        GK=key_heads,
        P=places,
        CELLS=_ROWS // per_cell,
        PLACES=per_cell,
        KEY_TILES=_KEY_TILES,
        **tile,
    )


def _by_row(cells: CoarseCells, key_heads: int) -> Tensor | None:  # (L, B)
    """The log sizes of each pair of batch and selection head."""
    if cells.log_size is None:
        return None
    return cells.log_size.repeat_interleave(cells.key.shape[1] // key_heads, dim=0)


def _tile(key: Tensor) -> dict[str, Any]:
    """The tile of keys and how it is launched."""
    width = max(triton.next_power_of_2(key.shape[3]), 16)
    # Hopper and later take operands from shared memory, which leaves registers for larger tiles.
    gpu = key.device.type != "cpu"
    hopper = gpu and torch.cuda.get_device_capability(key.device)[0] in (9, 10)
    keys = 64 if hopper and width <= 64 else 32
    return {
        "D": key.shape[3],
        "PAD_D": width,
        "WIDTH": 128 if hopper and width == 128 else min(width, 64),
        "KEYS": min(max(triton.next_power_of_2(key.shape[2]), 16), keys),
        "PRECISION": PRECISION,
        "num_warps": 4 if hopper or width <= 64 else 8,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }
