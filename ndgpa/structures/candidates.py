"""Which key blocks a cell may choose from: those of its group; if causal, those wholly past.

Blocks that are neither wholly past nor wholly later overlap with the cell. How relevant they are
cannot be told from the past, so a causal rule reads them besides, with the exact mask.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def count_candidates(
    cell_group: Int[Tensor, " C"],
    group: Int[Tensor, " B"],
    now: Int[Tensor, " C"],
    last: Int[Tensor, " B"],
) -> Int[Tensor, " C"]:
    """Count the blocks of each cell's group with `last <= now`."""
    cell_group, group = _ranked(cell_group, group)
    now, last = _ranked(now, last)
    steps = len(now) + len(last)  # more than there are ranks
    ends = (group * steps + last).sort().values
    before = torch.searchsorted(ends, cell_group * steps)
    return torch.searchsorted(ends, cell_group * steps + now, right=True) - before


def blocks_between(
    now: Int[Tensor, " C"],
    until: Int[Tensor, " C"],
    first: Int[Tensor, " B"],
    last: Int[Tensor, " B"],
    cell_group: Int[Tensor, " C"] | None = None,
    group: Int[Tensor, " B"] | None = None,
) -> Int[Tensor, "C E"]:
    """The blocks of each cell with `first <= until` and `last > now`, in the cell's group.

    Of two intervals that overlap, one begins within the other. So either the block begins within
    (now, until], which is a run of the blocks sorted by beginning, or the cell begins within
    [first, last), which is a run of the cells sorted by beginning. Memory is that of the result.
    """
    now, until, first, last = _ranked(now, until, first, last)
    if cell_group is not None and group is not None:
        steps = int(torch.cat([until, last]).max()) + 1
        space, key_space = _ranked(cell_group, group)
        now, until = now + steps * space, until + steps * space
        first, last = first + steps * key_space, last + steps * key_space
    begins, by_first = first.sort(stable=True)
    cell, place = _expand(
        torch.searchsorted(begins, now, right=True), torch.searchsorted(begins, until, right=True)
    )
    starts, by_now = now.sort(stable=True)
    block, cell_place = _expand(
        torch.searchsorted(starts, first), torch.searchsorted(starts, torch.maximum(first, last))
    )
    cells = torch.cat([cell, by_now[cell_place]])
    blocks = torch.cat([by_first[place], block])
    pairs = (cells * len(first) + blocks).sort().values
    return _table(pairs // len(first), pairs % len(first), len(now))


def _ranked(*times: Tensor) -> list[Tensor]:
    """Times, or numbers of spaces, as small numbers in the same order."""
    ranks = torch.cat(times).unique(return_inverse=True)[1]
    return list(ranks.split([len(t) for t in times]))


def _expand(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Every (row, number) with low[row] <= number < high[row]."""
    counts = (high - low).clamp(min=0)
    row = torch.arange(len(low), device=low.device).repeat_interleave(counts)
    within = torch.arange(len(row), device=low.device) - (counts.cumsum(0) - counts)[row]
    return row, low[row] + within


def _table(row: Tensor, member: Tensor, rows: int) -> Tensor:
    """Members by row, `row` ascending; -1 after the last."""
    counts = row.bincount(minlength=rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = row.new_full((rows, int(counts.max())), -1)
    table[row, place] = member
    return table
