"""What the kernels of a selection share: products of coarse means, and which keys a row sees.

Letters: b batch, h heads, gk key heads of a selection, g query heads of a key head, C cells, P
places of a cell, B key blocks, T groups of GROUP key blocks, d features, L pairs of batch and
selection head. Means are float32, multiplied with its error, or in two parts of bfloat16, high and
low (`structures.means`), of which three products are added up.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa.selection.relevance import CoarseCells


@triton.jit
def load_means(p_rows, m_row, first, D: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Features of means from `first` on, in two parts, or twice the same: 2 of (rows, WIDTH).

    Zeros for what does not exist; with FULL all rows do.
    """
    o_feature = first + tl.arange(0, WIDTH)
    p = p_rows[:, None] + o_feature[None, :]
    m = m_row[:, None] & (o_feature < D)[None, :]
    if FULL and D % WIDTH == 0:
        m = None
    b_high = load(p, m)
    b_low = b_high
    if p_rows.dtype.element_ty == tl.bfloat16:
        b_low = load(p + D, m)
    return b_high, b_low


@triton.jit
def load(p, m):
    """Elements, zeros where the mask, which may be None, is false."""
    return tl.load(p) if m is None else tl.load(p, mask=m, other=0.0)


@triton.jit
def add_products(b_sum, b_a, b_a_low, b_b, b_b_low, PRECISION: tl.constexpr):
    """Add the products of rows of means: (rows of a, rows of b)."""
    if b_a.dtype == tl.bfloat16:
        b_sum = tl.dot(b_a_low, tl.trans(b_b), b_sum)
        b_sum = tl.dot(b_a, tl.trans(b_b_low), b_sum)
        b_sum = tl.dot(b_a, tl.trans(b_b), b_sum)
    else:
        b_sum = tl.dot(b_a, tl.trans(b_b), b_sum, input_precision=PRECISION)
    return b_sum


@triton.jit
def scores(
    b_query,  # (rows, PAD_D), used where one product takes all features
    b_query_low,
    p_query_rows,
    m_row,
    p_key_rows,
    m_key,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    WIDTH: tl.constexpr,
    FULL_KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of query and key means, WIDTH features at a time: (keys, rows), or (rows, keys)."""
    rows: tl.constexpr = p_query_rows.shape[0]
    keys: tl.constexpr = p_key_rows.shape[0]
    b_s = tl.zeros((keys, rows) if KEYS_FIRST else (rows, keys), tl.float32)
    for first in range(0, PAD_D, WIDTH):
        if WIDTH != PAD_D:
            b_query, b_query_low = load_means(p_query_rows, m_row, first, D, WIDTH, False)
        b_key, b_key_low = load_means(p_key_rows, m_key, first, D, WIDTH, FULL_KEYS)
        if KEYS_FIRST:
            b_s = add_products(b_s, b_key, b_key_low, b_query, b_query_low, PRECISION)
        else:
            b_s = add_products(b_s, b_query, b_query_low, b_key, b_key_low, PRECISION)
    return b_s


@triton.jit
def added(p_bias, p_log_size, o_key, m_key):
    """Bias and log size of the keys of a tile, either of which may be None."""
    b_bias = tl.zeros_like(o_key).to(tl.float32)
    b_log_size = b_bias
    if p_bias is not None:
        b_bias = tl.load(p_bias + o_key, mask=m_key, other=0.0)
    if p_log_size is not None:
        b_log_size = tl.load(p_log_size + o_key, mask=m_key, other=float("-inf"))
    return b_bias, b_log_size


@triton.jit
def candidates(b_group, b_now, p_key_group, p_key_time, o_key, m_key):
    """Which keys of a tile exist, are of the group of a row, and past to it: (keys, 1 or rows)."""
    m_seen = m_key[:, None]
    if p_key_group is not None:
        b_other = tl.load(p_key_group + o_key, mask=m_key, other=-1)
        m_seen = m_seen & (b_group[None, :] == b_other[:, None])
    if p_key_time is not None:
        b_then = tl.load(p_key_time + o_key, mask=m_key, other=0)
        m_seen = m_seen & (b_then[:, None] <= b_now[None, :])
    return m_seen


def sizes_by_row(cells: CoarseCells, key_heads: int) -> Tensor | None:  # (L, B)
    """The log sizes of each pair of batch and selection head."""
    if cells.log_size is None:
        return None
    return cells.log_size.repeat_interleave(cells.key.shape[1] // key_heads, dim=0)


def rows_of_tile(key: Tensor) -> int:
    """Coarse queries of a tile; the more, the less often the keys are read."""
    return 128 if key.dtype == torch.bfloat16 and key.shape[-1] <= 64 else 64


def tile_of(key: Tensor) -> dict[str, Any]:
    """The tile of keys and how it is launched."""
    num_blocks, d = key.shape[2], key.shape[-1]
    width = max(triton.next_power_of_2(d), 16)
    # Hopper and later take operands from shared memory, which leaves registers for larger tiles.
    gpu = key.device.type != "cpu"
    capability = torch.cuda.get_device_capability(key.device)[0] if gpu else 0
    hopper = capability in (9, 10) and not torch.version.hip
    keys = min(max(triton.next_power_of_2(num_blocks), 16), 64 if hopper else 32)
    return {
        "D": d,
        "PAD_D": width,
        "ROW": key.stride(2),
        "WIDTH": 128 if hopper and width == 128 else min(width, 64),
        "KEYS": keys,
        "FULL_KEYS": num_blocks % keys == 0,
        "PRECISION": precision(),
        "num_warps": 4 if hopper or width <= 64 else 8,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


def precision() -> str:
    """How float32 means are multiplied: with the error of float32, on matrix units where they can.

    Three products in tf32 are that on Nvidia's; the compiler for AMD has none, and exact ones.
    """
    return "ieee" if torch.version.hip else "tf32x3"
