"""The k most relevant key blocks of each cell, in kernels; everything stays on the device.

Relevance is held for a bounded number of cells at a time, and with it the largest score of each
group of neighbouring blocks. The k best groups, of equals the lowest, hold the k best blocks, so
only their scores are read. The k-th largest of a number of scores is found by halving the range of
their bits; at least k scores reach the bound that is found among the groups, where the second
search begins. Ids come out in ascending order; of equals the lowest are taken.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndgpa._ops import on_its_device
from ndgpa.selection.relevance import CoarseCells
from ndgpa.selection.slots import without_blocks
from ndgpa.selection.triton_lse import write_log_sum_exp
from ndgpa.selection.triton_relevance import GROUP, write_relevance
from ndgpa.structures.means import in_two, whole

# Cells x key blocks whose relevance is held at a time: 128 MB.
_HELD = 1 << 25
# The most scores that one program holds in registers.
MOST_HELD = 1 << 14
# Logits in base 2 further below the largest than this may have a softmax of 0.
_FAR = tl.constexpr(100.0)


@triton.jit
def ordered_bits(b_score):
    """Floats as integers of the same order, with one zero."""
    b_bits = tl.where(b_score == 0, 0.0, b_score).to(tl.int32, bitcast=True)
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def largest_of(b_score, k, bound):
    """Which of the scores are the k largest, of equals the first, and a bound that they reach.

    Never one of -inf. The search begins at the bound given, where k scores reach it; or None.
    """
    m_there = b_score > float("-inf")
    count = tl.sum(m_there.to(tl.int32), 0)
    k = tl.minimum(k, count)
    b_bits = tl.where(m_there, ordered_bits(b_score), -2147483648)
    # At least k numbers reach the lower end of the range, fewer the upper.
    low = tl.min(tl.where(m_there, b_bits, 2147483647), 0)
    high = tl.max(b_bits, 0) + 1
    if bound is not None:
        reach = tl.sum((b_bits >= tl.maximum(bound, low)).to(tl.int32), 0)
        enough = reach >= k
        low = tl.where(enough, tl.maximum(bound, low), low)
        count = tl.where(enough, reach, count)
    while (count != k) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)
        reach = tl.sum((b_bits >= middle).to(tl.int32), 0)
        enough = reach >= k
        low = tl.where(enough, middle, low)
        count = tl.where(enough, reach, count)
        high = tl.where(enough, high, middle)
    m_keep = m_there & (b_bits >= low)
    if count != k:  # several equal the k-th
        m_equal = b_bits == low
        left = k - tl.sum((m_keep & (b_bits > low)).to(tl.int32), 0)
        m_keep = m_keep & ((b_bits > low) | (tl.cumsum(m_equal.to(tl.int32), 0) <= left))
    return m_keep, low


@triton.jit
def without(b_score, o_block, p_forced, row, F: tl.constexpr):
    """Scores with -inf for the blocks that are read anyway."""
    if p_forced is not None:
        for i in range(0, F):
            forced = tl.load(p_forced + row * F + i)
            b_score = tl.where(o_block == forced, float("-inf"), b_score)
    return b_score


@triton.jit
def store_ids(p_out, o_block, m_keep, k, PAD_K: tl.constexpr):
    """Store the ids that are kept, and -1 in the slots that are left."""
    b_keep = m_keep.to(tl.int32)
    kept = tl.sum(b_keep, 0)
    tl.store(p_out + tl.cumsum(b_keep, 0) - 1, o_block, mask=m_keep)
    o_rest = tl.arange(0, PAD_K)
    b_empty = tl.full((PAD_K,), -1, tl.int32)
    tl.store(p_out + o_rest, b_empty, mask=(o_rest >= kept) & (o_rest < k))


@triton.jit
def weights_above_zero(p_scores, p_forced, row, B, largest, F: tl.constexpr, CHUNK: tl.constexpr):
    """The log-sum-exp of a row of logits, in base 2, and how many candidates weigh more than 0."""
    b_sum = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, B, CHUNK):
        o_block = start + tl.arange(0, CHUNK)
        b_score = tl.load(p_scores + o_block, mask=o_block < B, other=float("-inf"))
        b_sum += tl.exp2(b_score - largest)
    lse = largest + tl.log2(tl.sum(b_sum, 0))
    b_above = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, B, CHUNK):
        o_block = start + tl.arange(0, CHUNK)
        b_score = tl.load(p_scores + o_block, mask=o_block < B, other=float("-inf"))
        b_score = without(b_score, o_block, p_forced, row, F)
        b_above += (tl.exp2(b_score - lse) > 0).to(tl.int32)
    return lse, tl.sum(b_above, 0)


@triton.jit
def store_with_zeros(
    p_scores, p_forced, row, p_out, B, lse, zeros, F: tl.constexpr, CHUNK: tl.constexpr
):
    """Store the ids of all weights above 0, and of as many `zeros` the lowest."""
    stored = 0
    for start in range(0, B, CHUNK):
        o_block = start + tl.arange(0, CHUNK)
        b_score = tl.load(p_scores + o_block, mask=o_block < B, other=float("-inf"))
        b_score = without(b_score, o_block, p_forced, row, F)
        m_above = tl.exp2(b_score - lse) > 0
        b_zero = ((b_score > float("-inf")) & ~m_above).to(tl.int32)
        b_keep = (m_above | ((b_zero > 0) & (tl.cumsum(b_zero, 0) <= zeros))).to(tl.int32)
        tl.store(p_out + stored + tl.cumsum(b_keep, 0) - 1, o_block, mask=b_keep > 0)
        zeros -= tl.minimum(tl.sum(b_zero, 0), zeros)
        stored += tl.sum(b_keep, 0)


@triton.jit
def top_k_kernel(
    p_scores,  # (rows, B) float32, contiguous as all that follow
    p_largest,  # (rows, T) float32, of each group, overwritten; None: all scores are read
    p_forced,  # (rows, F), no candidates, -1 for an empty slot; or None
    p_out,  # (rows, k) int32
    B,
    T,
    k,
    groups,  # that are read
    F: tl.constexpr,
    SINGLE: tl.constexpr,  # scores are logits in base 2, whose softmax is meant
    GROUP: tl.constexpr,
    PAD_T: tl.constexpr,
    PAD_GROUPS: tl.constexpr,
    PAD_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p_scores += row * B
    p_out += row * k
    o_slot = tl.arange(0, PAD_GROUPS)
    o_group = o_slot
    bound = None
    if p_largest is not None:
        p_largest += row * T
        o_all = tl.arange(0, PAD_T)
        b_largest = tl.load(p_largest + o_all, mask=o_all < T, other=float("-inf"))
        m_read, bound = largest_of(b_largest, groups, None)
        b_read = m_read.to(tl.int32)
        # The ids of the groups go where their largest were, to be read by slot.
        tl.store(p_largest + tl.cumsum(b_read, 0) - 1, o_all.to(tl.float32), mask=m_read)
        tl.debug_barrier()
        m_slot = o_slot < tl.sum(b_read, 0)
        o_group = tl.load(p_largest + o_slot, mask=m_slot, other=T * 1.0).to(tl.int32)
    o_block = o_group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    o_block = tl.reshape(o_block, (PAD_GROUPS * GROUP,))
    b_score = tl.load(p_scores + o_block, mask=o_block < B, other=float("-inf"))
    largest = tl.max(b_score, 0)
    b_score = without(b_score, o_block, p_forced, row, F)
    m_keep, bound = largest_of(b_score, k, bound)
    lse = largest
    above = k + 0
    if SINGLE:
        least = tl.min(tl.where(m_keep, b_score, float("inf")), 0)
        if (tl.sum(m_keep.to(tl.int32), 0) == k) & (
            (largest == float("inf")) | (least < largest - _FAR)
        ):
            lse, above = weights_above_zero(p_scores, p_forced, row, B, largest, F, CHUNK)
    if above < k:
        store_with_zeros(p_scores, p_forced, row, p_out, B, lse, k - above, F, CHUNK)
    else:
        store_ids(p_out, o_block, m_keep, k, PAD_K)


def select(
    cells: CoarseCells,  # float32, or in two parts
    forced: Tensor | None,  # (b, hs, C, F), excluded from the candidates
    k: int,
    relevance: str,
    selection_heads: int,
) -> Tensor:  # (b, hs, C, min(k, B)) int32, ascending, empty slots last
    batch, num_cells, num_blocks = cells.query.shape[0], cells.query.shape[2], cells.key.shape[2]
    cells = _laid_out(cells, relevance, selection_heads)
    key_heads = cells.key.shape[1] // selection_heads
    rows = batch * selection_heads
    out = cells.query.new_empty(rows, num_cells, min(k, num_blocks), dtype=torch.int32)
    if forced is not None:
        forced = forced.flatten(0, 1).contiguous()
    read = _groups(num_blocks, out.shape[2] + (0 if forced is None else forced.shape[2]))
    lse, kind = None, relevance
    if relevance == "mass":
        single = cells.query.shape[1] * cells.query.shape[3] == selection_heads
        kind = "single" if single and read is not None else "mass"
    if kind == "mass":
        lse = cells.query.new_empty(cells.query.shape[:4], dtype=torch.float32)
        write_log_sum_exp(lse, cells, key_heads)
    rows_held = max(1, _HELD // (num_blocks * num_cells))
    cells_held = max(1, min(num_cells, _HELD // num_blocks))
    for row in range(0, rows, rows_held):
        for cell in range(0, num_cells, cells_held):
            held = slice(row, row + rows_held), slice(cell, cell + cells_held)
            shape = out[held].shape[:2]
            scores = out.new_empty(*shape, num_blocks, dtype=torch.float32)
            largest = out.new_empty(*shape, triton.cdiv(num_blocks, GROUP), dtype=torch.float32)
            write_relevance(scores, largest, cells, lse, kind, row, cell, key_heads)
            top_k(scores, out[held], largest, None if forced is None else forced[held], kind)
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
        summed = (whole(query) * weight[:, None, ..., None]).sum(dim=3)
        summed = summed.unflatten(1, (-1, sharers)).sum(dim=2)[:, :, :, None]
        query = summed if query.dtype == torch.float32 else in_two(summed)
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
def top_k(
    scores: Tensor,  # (..., B) float32, contiguous
    out: Tensor,  # (..., k) int32, contiguous, written
    largest: Tensor,  # (..., T), contiguous: the largest score of each group, overwritten
    forced: Tensor | None = None,  # (..., F), no candidates, -1 for an empty slot
    kind: str = "mass",  # that of `write_relevance`
) -> None:
    """Write the ids of the largest scores of each row."""
    num_blocks, num_groups, count = scores.shape[-1], largest.shape[-1], out.shape[-1]
    always = 0 if forced is None else forced.shape[-1]
    read = _groups(num_blocks, count + always)
    if read is None:
        _top_k_of_long_rows(scores if forced is None else without_blocks(scores, forced), out)
        return
    width = triton.next_power_of_2(max(read * GROUP, num_groups if read < num_groups else 16))
    top_k_kernel[(scores.shape[:-1].numel(),)](
        scores,
        largest if read < num_groups else None,
        None if forced is None else forced.contiguous(),
        out,
        num_blocks,
        num_groups,
        count,
        read,
        F=always,
        SINGLE=kind == "single",
        GROUP=GROUP,
        PAD_T=triton.next_power_of_2(num_groups),
        PAD_GROUPS=triton.next_power_of_2(read),
        PAD_K=triton.next_power_of_2(count),
        CHUNK=min(triton.next_power_of_2(num_blocks), 512),
        num_warps=min(max(width // 1024, 1), 16),
        enable_fp_fusion=True,
    )


def _groups(num_blocks: int, wanted: int) -> int | None:
    """How many groups of scores are read to find the best blocks; None: more than can be held."""
    num_groups = triton.cdiv(num_blocks, GROUP)
    some, every = (triton.next_power_of_2(x) for x in (min(wanted, num_groups), num_groups))
    if GROUP * every <= MOST_HELD and 2 * some > every:
        return num_groups
    return min(wanted, num_groups) if max(GROUP * some, every) <= MOST_HELD else None


def _top_k_of_long_rows(scores: Tensor, out: Tensor) -> None:
    num_blocks, count = scores.shape[-1], out.shape[-1]
    ids = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    ids = ids.masked_fill(scores.gather(-1, ids) == -torch.inf, num_blocks).sort(dim=-1).values
    out.copy_(ids.masked_fill(ids == num_blocks, -1))
