"""The selection read backwards: for each key block, the cells that read it.

Everything is made on the device from sorts and searches, in shapes that do not depend on the
values: the host never waits, and the order is the same every time.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Inverse:
    """Readers of each key block, in the order of (head, cell, slot), cut into segments.

    A row is a pair of batch and table head: key heads that share one selection share a row. A
    reader is one slot of one cell. A block with more readers than a segment holds is split; it is
    called hot, and the parts of its segments are summed afterwards, in order. A block without
    readers has one empty segment.

    Args:
        cells: (L, E) int32, the cell of each reader.
        heads: (L, E) int32, its head, counted within the row; None where a row has one.
        biases: (L, E) float32, the slot bias of each reader, or None.
        segments: (L, S, 4) int32: block, first reader, end of readers, and where its part is kept,
            -1 for the segment that is its block's only one. The block is -1 for a spare segment.
        hot: (L, H, 3) int32: block, first part, end of parts. The block is -1 for a spare row.
        parts: How many parts a row has room for.
    """

    cells: Int[Tensor, "L E"]
    heads: Int[Tensor, "L E"] | None
    biases: Float[Tensor, "L E"] | None
    segments: Int[Tensor, "L S 4"]
    hot: Int[Tensor, "L H 3"]
    parts: int


def inverse(
    blocks: Int[Tensor, "b hs C K"],
    slot_bias: Float[Tensor, "b hs C K"] | None,
    num_blocks: int,
    key_heads: int,
    longest: int,
) -> Inverse:
    """Sort the slots by the block that they name.

    Args:
        blocks: int32, -1 for an empty slot.
        longest: Readers of the longest segment.
    """
    heads = min(blocks.shape[1], key_heads)
    slots = rearrange(blocks, "b (l t) c k -> (b l) (t c k)", l=heads)
    readers = slots.shape[1]
    order, starts = _sorted(slots, num_blocks)
    cells, of_head = (order // blocks.shape[3]).int(), None
    if heads < blocks.shape[1]:
        of_head, cells = cells // blocks.shape[2], cells % blocks.shape[2]
    biases = None
    if slot_bias is not None:
        biases = rearrange(slot_bias, "b (l t) c k -> (b l) (t c k)", l=heads).gather(1, order)
    counts = starts.diff(dim=1)
    pieces = ((counts + longest - 1) // longest).clamp(min=1)  # segments of each block
    kept = pieces.masked_fill(pieces == 1, 0)  # parts of each block
    ends, kept_ends = pieces.cumsum(1), kept.cumsum(1)
    count = torch.arange(num_blocks + readers // longest, device=blocks.device)
    block = _owner(ends, count)
    real = block.clamp(max=num_blocks - 1)
    piece = count - (ends - pieces).gather(1, real)
    first = starts.gather(1, real) + piece * longest
    end = torch.minimum(first + longest, starts.gather(1, real + 1))
    part = (kept_ends - kept).gather(1, real) + piece
    part = part.masked_fill(kept.gather(1, real) == 0, -1)
    segments = torch.stack([block.masked_fill(block == num_blocks, -1), first, end, part], dim=-1)
    hot = _owner((kept > 0).cumsum(1), torch.arange(readers // longest, device=blocks.device))
    real = hot.clamp(max=num_blocks - 1)
    begin = (kept_ends - kept).gather(1, real)
    hot_rows = [hot.masked_fill(hot == num_blocks, -1), begin, kept_ends.gather(1, real)]
    return Inverse(
        cells,
        of_head,
        biases,
        segments.int(),
        torch.stack(hot_rows, dim=-1).int(),
        parts=2 * (readers // longest),
    )


def sorted_places(
    key_sites: Int[Tensor, "B R"], num_sites: int
) -> tuple[Int[Tensor, " places"], Int[Tensor, " n1"]]:
    """The places of the table in the order of the sites that stand in them, and where each site's
    begin. Empty places come last."""
    order, starts = _sorted(key_sites.reshape(1, -1), num_sites)
    return order[0], starts[0]


def _sorted(
    slots: Int[Tensor, "L E"], num_blocks: int
) -> tuple[Int[Tensor, "L E"], Int[Tensor, "L B1"]]:
    """The slots of each row in the order of the blocks that they name, and where each block starts.

    Empty slots come last. One sort over all rows is one pass of radix sort on a GPU.
    """
    rows, readers = slots.shape
    row = torch.arange(rows, device=slots.device)[:, None]
    small = rows * (num_blocks + 1) < 2**31
    keys = slots.masked_fill(slots < 0, num_blocks) + row * (num_blocks + 1)
    keys, order = keys.to(torch.int32 if small else torch.int64).flatten().sort(stable=True)
    ids = keys.view(rows, readers) - row * (num_blocks + 1)
    wanted = torch.arange(num_blocks + 1, device=slots.device).repeat(rows, 1)
    starts = torch.searchsorted(ids.contiguous(), wanted)
    return order.view(rows, readers) - row * readers, starts


def _owner(ends: Int[Tensor, "L B"], count: Int[Tensor, " S"]) -> Int[Tensor, "L S"]:
    """Who owns the i-th thing, where the first `ends[j]` things belong to 0 ... j; else B."""
    return torch.searchsorted(ends, count.repeat(len(ends), 1), right=True)
