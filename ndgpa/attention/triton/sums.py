"""Sums over what the key-major kernel wrote apart, each in order: two kernels.

The readers of a hot block are cut into segments, each of which writes a part: `add_parts` writes
their sums to the places of the block. Where a site may stand in no block or in several, there is a
row for each place of each block: `add_places` writes the sum over the places of each site. Letters
and prefixes as in `tiles`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa.attention.triton.inverse import Inverse, sorted_places
from ndgpa.attention.triton.tiles import load_rows, padded_width, rows_strides, store_rows


@triton.jit(do_not_specialize=("n_out", "H", "key_heads", "table_heads", "parts"))
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


@triton.jit(do_not_specialize=("n_k", "places", "key_heads"))
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


def add_parts(
    parts: Tensor,
    readers: Inverse,
    key_sites: Tensor,
    grads: tuple[Tensor, Tensor, Tensor | None],
    keys: int,
    shape: dict[str, int],
) -> None:
    """Write the gradients of key, value and key bias in the hot blocks.

    Args:
        keys: Rows of a tile.
        shape: The constants that this kernel shares with the key-major one.
    """
    grad_key, grad_value, grad_bias = grads
    (batch, key_heads, n_out, _), (rows, hot, _) = grad_key.shape, readers.hot.shape
    programs = shape["TILES_PER_BLOCK"] * hot * key_heads * batch
    if programs == 0:
        return
    add_parts_kernel[(programs,)](
        parts,
        readers.hot,
        key_sites,
        grad_key,
        grad_value,
        grad_bias,
        *rows_strides(grad_key),
        *rows_strides(grad_value),
        n_out,
        hot,
        key_heads,
        rows // batch,
        readers.parts,
        PAD_D=padded_width(shape["D"]),
        PAD_DV=padded_width(shape["DV"]),
        KEYS=keys,
        num_warps=4,
        enable_fp_fusion=True,
        **shape,
    )


def by_place(grad: Tensor, key_sites: Tensor) -> Tensor:
    """Room for the gradients of all places of the blocks."""
    shape = *grad.shape[:2], key_sites.numel(), *grad.shape[3:]
    return grad.new_empty(shape, dtype=torch.float32)


def add_places(of_places: list[Tensor], key_sites: Tensor, grads: list[Tensor]) -> None:
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
