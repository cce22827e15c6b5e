"""The k most relevant key blocks of each cell, in kernels; everything stays on the device.

Relevance is held for a bounded number of cells at a time. The kernel finds the k-th largest
relevance of a cell bit by bit, and writes the ids above it in ascending order; of equals the
lowest.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.selection.relevance import CoarseCells
from ndgpa.selection.slots import without_blocks
from ndgpa.selection.triton_relevance import write_log_sum_exp, write_relevance

# Cells x key blocks whose relevance is held at a time: 128 MB.
_HELD = 1 << 25
# The longest row that one program holds in registers.
LONGEST_ROW = 1 << 14


@triton.jit
def top_k_kernel(
    p_scores,  # (rows, B) float32, contiguous
    p_out,  # (rows, k) int32, rows `s_out` apart
    s_out,
    B,
    k,
    PAD_B: tl.constexpr,
    PAD_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_block = tl.arange(0, PAD_B)
    b_score = tl.load(p_scores + row * B + o_block, mask=o_block < B, other=float("-inf"))
    b_score = tl.where(b_score == 0, 0.0, b_score)  # one zero only
    # Floats as integers of the same order.
    b_bits = b_score.to(tl.int32, bitcast=True)
    b_bits = b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)
    # The k-th largest: the greatest integer that at least k scores reach.
    least = tl.where(tl.sum((b_bits >= 0).to(tl.int32), 0) >= k, 0, -2147483648)
    for i in range(0, 31):
        higher = least | (1 << (30 - i))
        least = tl.where(tl.sum((b_bits >= higher).to(tl.int32), 0) >= k, higher, least)
    m_above = b_bits > least
    m_equal = b_bits == least
    left = k - tl.sum(m_above.to(tl.int32), 0)
    m_keep = m_above | (m_equal & (tl.cumsum(m_equal.to(tl.int32), 0) <= left))
    m_keep = m_keep & (b_score > float("-inf"))
    o_slot = tl.cumsum(m_keep.to(tl.int32), 0) - 1
    kept = tl.sum(m_keep.to(tl.int32), 0)
    tl.store(p_out + row * s_out + o_slot, o_block, mask=m_keep)
    o_rest = tl.arange(0, PAD_K)
    b_empty = tl.full((PAD_K,), -1, tl.int32)
    tl.store(p_out + row * s_out + o_rest, b_empty, mask=(o_rest >= kept) & (o_rest < k))


def select(
    cells: CoarseCells,  # float32
    forced: Tensor | None,  # (b, hs, C, F), excluded from the candidates
    k: int,
    relevance: str,
    selection_heads: int,
) -> Tensor:  # (b, hs, C, min(k, B)) int32, ascending, empty slots last
    batch, num_cells, num_blocks = cells.query.shape[0], cells.query.shape[2], cells.key.shape[2]
    cells = _laid_out(cells, relevance, selection_heads)
    key_heads = cells.key.shape[1] // selection_heads
    lse = None
    if relevance == "mass":
        lse = cells.query.new_empty(cells.query.shape[:4])
        write_log_sum_exp(lse, cells, key_heads)
    rows = batch * selection_heads
    out = cells.query.new_empty(rows, num_cells, min(k, num_blocks), dtype=torch.int32)
    rows_held = max(1, _HELD // (num_blocks * num_cells))
    cells_held = max(1, min(num_cells, _HELD // num_blocks))
    for row in range(0, rows, rows_held):
        for cell in range(0, num_cells, cells_held):
            held = slice(row, row + rows_held), slice(cell, cell + cells_held)
            scores = cells.query.new_empty(*out[held].shape[:2], num_blocks)
            write_relevance(scores, cells, lse, row, cell, key_heads)
            if forced is not None:
                scores = without_blocks(scores, forced.flatten(0, 1)[held])
            top_k(scores.flatten(0, 1), out[held])
    return out.unflatten(0, (batch, selection_heads))


def _laid_out(cells: CoarseCells, relevance: str, selection_heads: int) -> CoarseCells:
    """Lay the tensors out as the kernels read them, with a key head for each selection head.

    Logits are linear in the query, so where they are summed the queries of a cell are summed first.
    """
    query, key, bias, weight = cells.query, cells.key, cells.bias, cells.weight
    if selection_heads > key.shape[1]:
        repeats = selection_heads // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        bias = None if bias is None else bias.repeat_interleave(repeats, dim=1)
    if relevance == "logit":
        sharers = query.shape[1] // key.shape[1]
        summed = (query * weight[:, None, ..., None]).sum(dim=3)
        query = summed.unflatten(1, (-1, sharers)).sum(dim=2)[:, :, :, None]
        weight = weight.sum(dim=2, keepdim=True) * sharers
    by_row = weight.stride()[1:] == (weight.shape[2], 1)
    grouped = cells.cell_group is not None and cells.key_group is not None
    return replace(
        cells,
        query=query.contiguous(),
        key=key.contiguous(),
        bias=_contiguous(bias),
        log_size=_contiguous(cells.log_size),
        weight=weight if by_row else weight.contiguous(),
        cell_group=_contiguous(cells.cell_group) if grouped else None,
        key_group=_contiguous(cells.key_group) if grouped else None,
        cell_time=_contiguous(cells.cell_time),
        key_time=_contiguous(cells.key_time),
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@on_its_device
def top_k(scores: Tensor, out: Tensor) -> None:
    """Ids of the largest scores of each row, (rows, B), into `out`, (..., k), contiguous."""
    rows, num_blocks = scores.shape
    count = out.shape[-1]
    if num_blocks > LONGEST_ROW:
        ids = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
        ids = ids.masked_fill(scores.gather(1, ids) == -torch.inf, num_blocks).sort(dim=1).values
        out.copy_(ids.masked_fill(ids == num_blocks, -1).view(out.shape))
        return
    width = max(triton.next_power_of_2(num_blocks), 16)
    top_k_kernel[(rows,)](
        scores,
        out,
        count,
        num_blocks,
        count,
        PAD_B=width,
        PAD_K=triton.next_power_of_2(count),
        num_warps=min(max(width // 1024, 1), 16),
        enable_fp_fusion=True,
    )
