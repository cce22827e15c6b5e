"""What the kernels of the far field share: columns, bits of what is selected, sizes of tiles.

Rows of queries meet all key blocks but those that their cell selected, block by block as one key
each. The blocks stand in columns, bundle after bundle, so that a tile of columns is of one bundle;
a bit for each column and each row of the selection says that it is selected.

Letters: b batch, h heads, hk key heads, l pairs of batch and key head, GROUP heads of a key head,
Q queries of a head, B blocks, G bundles, N tiles of KEYS columns, C cells, K slots of a cell, W
words of 32 bits, d and w features. Prefixes as in `tiles`.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.far_bundles import Layout
from ndgpa.attention.far_rows import Inputs
from ndgpa.attention.triton.tiles import (
    Chip,
    Problem,
    Tile,
    ceil_div,
    forward_tile,
    key_major_tile,
    padded,
    padded_width,
    precision,
)

# Sizes of which no kernel is compiled anew.
SIZES = ("Q", "B", "C", "H", "tiles", "words", "bit_heads")


@triton.jit
def keys_of_tile(p_key_bias, p_block, pair, tile, B, tiles, KEYS: tl.constexpr):
    """The blocks of a tile of columns, which to load, and their biases: (KEYS,) each.

    A block of which nothing is seen has a bias of -inf; one whose bias is NaN spoils who sees it
    and is not loaded, nor are columns without a block.
    """
    o_column = tile * KEYS + tl.arange(0, KEYS)
    o_block = o_column
    if p_block is not None:
        o_block = tl.load(p_block + pair * tiles * KEYS + o_column)
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
    """Which columns of a tile are in the far field of each row: (ROWS, KEYS), or (KEYS, ROWS)."""
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
    p_cell, p_bits, p_query_time, p_query_group, head, o_row, m_row, C, H, words, bit_heads
):
    """Of each row: where its bits begin, its time, and its group."""
    o_cell = tl.load(p_cell + o_row, mask=m_row, other=0)
    p_words = p_bits + (head * bit_heads // H * C + o_cell) * words
    b_now = o_cell
    b_group = o_cell
    if p_query_time is not None:
        b_now = tl.load(p_query_time + o_row, mask=m_row, other=0)
    if p_query_group is not None:
        b_group = tl.load(p_query_group + o_row, mask=m_row, other=0)
    return p_words, b_now, b_group


@triton.jit(do_not_specialize=("B", "C", "K", "words", "bit_heads", "selection_heads", "key_heads"))
def mark_selected_kernel(
    p_selected,  # (b, hs, C, K) int32, contiguous, -1 for an empty slot
    p_column,  # (l, B + 1) int64, contiguous: the column of each block; None where they are equal
    p_bits,  # (b, bit heads, C, W) int32, contiguous, written
    B,
    C,
    K,
    words,
    bit_heads,
    selection_heads,
    key_heads,
    WORDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cell = row % C
    head = row // C  # of the bits
    b, bit_head = head // bit_heads, head % bit_heads
    o_word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    selection = b * selection_heads + bit_head * selection_heads // bit_heads
    p_selected += (selection * C + cell) * K
    if p_column is not None:
        p_column += (b * key_heads + bit_head * key_heads // bit_heads) * (B + 1)
    b_words = tl.zeros((WORDS,), tl.int32)
    for slot in range(0, K):
        block = tl.load(p_selected + slot)
        column = tl.maximum(block, 0)
        if p_column is not None:
            column = tl.load(p_column + column).to(tl.int32)
        m = (o_word == column // 32) & (block >= 0)
        b_words = b_words | tl.where(m, 1 << (column % 32), 0)
    tl.store(p_bits + row * words + o_word, b_words, mask=o_word < words)


class Columns(NamedTuple):
    """Where the blocks stand, as tables of int32; all are None where columns are blocks."""

    tiles: int  # N
    block: Tensor | None  # (l, N KEYS): the block of each column, B where there is none
    column: Tensor | None  # (l, B + 1), int64
    bundle: Tensor | None  # (l, N): of each tile
    first: Tensor | None  # (l, G + 1): the first tile of each bundle, and how many are used

    @classmethod
    def of(cls, given: Inputs, keys: int) -> "Columns":
        blocks, count = given.key.shape[2], given.bundles
        if count == 1:
            return cls(ceil_div(blocks, keys), None, None, None, None)
        layout = Layout.of(given.bundle.flatten(0, 1), count, keys)
        used = (layout.block[:, ::keys] < blocks).sum(dim=1, keepdim=True)
        number = torch.arange(count + 1, device=used.device).expand(len(used), -1)
        first = torch.searchsorted(layout.bundle, number.contiguous()).minimum(used)
        tables = layout.block.int(), layout.column, layout.bundle.int(), first.int()
        return cls(layout.tiles, *tables)


def bits_of(given: Inputs, columns: Columns, keys: int) -> Tensor:
    """Mark what is selected: (b, bit heads, C, W) int32, a bit for each column."""
    selected = given.selected.int().contiguous()
    (batch, heads, cells, slots), (key_heads, blocks) = selected.shape, given.key.shape[1:3]
    bit_heads = heads if columns.column is None else max(heads, key_heads)
    words = ceil_div(columns.tiles * keys, 32)
    table = selected.new_empty(batch, bit_heads, cells, words)
    if table.numel():
        width = min(padded(words), 1024)
        mark_selected_kernel[(batch * bit_heads * cells, ceil_div(words, width))](
            selected,
            columns.column,
            table,
            blocks,
            cells,
            slots,
            words,
            bit_heads,
            heads,
            key_heads,
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
        "G": given.bundles,
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
