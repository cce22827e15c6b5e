"""What the kernels of the far field share: logits, bits of what is selected, sizes of tiles.

Rows of queries meet all key blocks but those that their cell selected, block by block as one key
each, a tile of KEYS at a time; a bit for each block and each row of the selection says that it is
selected.

Letters: b batch, h heads, hk key heads, GROUP heads of a key head, Q queries of a head, B blocks, C
cells, K slots of a cell, W words of 32 bits, d and w features. Prefixes as in `tiles`.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.far_rows import Inputs
from ndgpa.attention.triton.tiles import (
    Chip,
    Problem,
    Tile,
    ceil_div,
    forward_tile,
    key_major_tile,
    load_rows,
    logits,
    padded,
    padded_width,
    precision,
    products,
)

# Sizes of which no kernel is compiled anew.
SIZES = ("Q", "B", "C", "H", "tiles", "words", "bit_heads")


@triton.jit
def keys_of_tile(p_key_bias, pair, tile, B, KEYS: tl.constexpr):
    """The blocks of a tile, which to load, and their biases: (KEYS,) each.

    A block of which nothing is seen has a bias of -inf; one whose bias is NaN spoils who sees it
    and is not loaded, nor is what is after the last block.
    """
    o_block = tile * KEYS + tl.arange(0, KEYS)
    m_key = o_block < B
    b_bias = tl.load(p_key_bias + pair * B + o_block, mask=m_key, other=float("-inf"))
    m_load = (b_bias == b_bias) & (b_bias != float("-inf"))
    return tl.where(m_key, o_block, 0).to(tl.int64), m_load, b_bias


@triton.jit
def far_seen(
    p_words,  # (ROWS,): where the bits of each row begin
    p_key_time,
    p_key_group,
    b_now,
    b_group,
    m_row,
    o_block,
    tile,
    KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
):
    """Which blocks of a tile are in the far field of each row: (ROWS, KEYS), or (KEYS, ROWS)."""
    o_bit = tl.arange(0, KEYS)
    if KEYS < 32:
        o_bit += tile * KEYS % 32
    p_word = p_words + tile * KEYS // 32
    b_words = _by_row(tl.load(p_word, mask=m_row, other=0), KEYS_FIRST)
    if KEYS == 64:
        b_second = _by_row(tl.load(p_word + 1, mask=m_row, other=0), KEYS_FIRST)
        b_words = tl.where(_by_key(o_bit, KEYS_FIRST) < 32, b_words, b_second)
    m_seen = (b_words & _by_key(1 << (o_bit % 32), KEYS_FIRST)) == 0
    if p_key_time is not None:
        b_then = tl.load(p_key_time + o_block)
        m_seen = m_seen & (_by_key(b_then, KEYS_FIRST) <= _by_row(b_now, KEYS_FIRST))
    if p_key_group is not None:
        b_other = tl.load(p_key_group + o_block)
        m_seen = m_seen & (_by_key(b_other, KEYS_FIRST) == _by_row(b_group, KEYS_FIRST))
    return m_seen


@triton.jit
def _by_row(b_row, KEYS_FIRST: tl.constexpr):
    return b_row[None, :] if KEYS_FIRST else b_row[:, None]


@triton.jit
def _by_key(b_key, KEYS_FIRST: tl.constexpr):
    return b_key[:, None] if KEYS_FIRST else b_key[None, :]


@triton.jit
def rows_of_far(
    p_query,
    p_cell,
    p_bits,
    p_query_time,
    p_query_group,
    s_query_b,
    s_query_h,
    s_query_n,
    head,
    tile,
    Q,
    C,
    H,
    words,
    bit_heads,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile of rows of a head: its rows, which there are, where the bits of each begin, its time,
    its group, and its query."""
    # (ROWS,)
    o_row = tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < Q
    o_cell = tl.load(p_cell + o_row, mask=m_row, other=0)
    p_words = p_bits + (head * bit_heads // H * C + o_cell) * words
    b_now = o_cell
    b_group = o_cell
    if p_query_time is not None:
        b_now = tl.load(p_query_time + o_row, mask=m_row, other=0)
    if p_query_group is not None:
        b_group = tl.load(p_query_group + o_row, mask=m_row, other=0)
    # (ROWS, PAD_D)
    p_query += head // H * s_query_b + head % H * s_query_h
    b_query = load_rows(p_query + o_row.to(tl.int64) * s_query_n, m_row, D, PAD_D)
    return o_row, m_row, p_words, b_now, b_group, b_query


@triton.jit
def logits_of_far(
    b_query,
    p_words,
    b_now,
    b_group,
    m_row,
    p_key,  # of the key head
    p_key_bias,
    p_key_time,
    p_key_group,
    pair,
    tile,
    B,
    scale,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The blocks of a tile, which to load, their keys, and what each row makes of them."""
    # (KEYS,), (ROWS, KEYS), (KEYS, PAD_D)
    o_block, m_load, b_bias = keys_of_tile(p_key_bias, pair, tile, B, KEYS)
    m_seen = far_seen(
        p_words, p_key_time, p_key_group, b_now, b_group, m_row, o_block, tile, KEYS, False
    )
    b_key = load_rows(p_key + o_block * D, m_load, D, PAD_D)
    b_s = products(b_query, b_key, None, None, PRECISION)
    return o_block, m_load, b_key, logits(b_s, scale, b_bias[None, :], m_seen, False)


@triton.jit(do_not_specialize=("C", "K", "words"))
def mark_selected_kernel(
    p_selected,  # (b, hs, C, K) int32, contiguous, -1 for an empty slot
    p_bits,  # (b, hs, C, W) int32, contiguous, written
    C,
    K,
    words,
    WORDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    p_selected += row * K
    b_words = tl.zeros((WORDS,), tl.int32)
    for slot in range(0, K):
        block = tl.load(p_selected + slot)
        place = tl.maximum(block, 0)
        m = (o_word == place // 32) & (block >= 0)
        b_words = b_words | tl.where(m, 1 << (place % 32), 0)
    tl.store(p_bits + row * words + o_word, b_words, mask=o_word < words)


def bits_of(given: Inputs, keys: int) -> Tensor:
    """Mark what is selected: (b, hs, C, W) int32, a bit for each block of each tile of `keys`."""
    selected = given.selected.int().contiguous()
    batch, heads, cells, slots = selected.shape
    words = ceil_div(ceil_div(given.key.shape[2], keys) * keys, 32)
    table = selected.new_empty(batch, heads, cells, words)
    if table.numel():
        width = min(padded(words), 1024)
        mark_selected_kernel[(batch * heads * cells, ceil_div(words, width))](
            selected,
            table,
            cells,
            slots,
            words,
            WORDS=width,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return table


def far_problem(given: Inputs) -> Problem:
    """What the choice of a tile depends on; its queries are as those of one cell."""
    wide = max(padded_width(given.key.shape[3]), padded_width(given.value.shape[3]))
    chip, size = Chip.of(given.query.device), given.query.element_size()
    return Problem(given.query.shape[2], 1, given.key.shape[2], 1, wide, size, chip)


def far_forward_tile(problem: Problem) -> Tile:
    """As the near field's, but where bits and biases would cost spills."""
    if problem.size == 2 and problem.wide == 128 and not problem.chip.hopper:
        return Tile(64, 32, 4, 3)
    return forward_tile(problem)


def far_key_tile(problem: Problem) -> Tile:
    """As the near field's, but that keys are the rows of its products: there are always many."""
    if problem.size == 2 and problem.wide == 128 and problem.chip.hopper:
        return Tile(32, 64, 4, 2)
    return key_major_tile(problem)


def far_constants(given: Inputs, tile: Tile) -> dict[str, Any]:
    """The constants that all three kernels take."""
    d, width = given.key.shape[3], given.value.shape[3]
    return {
        "GROUP": given.query.shape[1] // given.key.shape[1],
        "D": d,
        "DV": width,
        "PAD_D": padded_width(d),
        "PAD_DV": padded_width(width),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PRECISION": precision(given.query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }
