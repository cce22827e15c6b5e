"""Bundles of far blocks: blocks whose mean keys are alike, which share one key.

A bundle is what is nearest to a landmark. The landmarks of a space are the mean keys of some of its
blocks, evenly spaced among those of which anything is seen; of equally near ones the first counts.
Twice each landmark moves to the mean of its bundle, as in k-means. If causal, landmarks stay, and a
block looks only at those that are past when it is, so that its bundle does not depend on later
keys. Bundles carry no gradient.

For products, the blocks are laid out bundle after bundle, in tiles of one bundle each.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._ops import fold_into_batch, without_autocast
from ndgpa.attention.rows import add_rows_

# Moves of the landmarks.
_ROUNDS = 2


# One opaque operator: how many spaces there are is a value, on which a graph cannot depend.
@torch.library.custom_op("ndgpa::bundle_blocks", mutates_args=())
def bundle_blocks(
    key: Tensor,  # (b, hk, B, d), means
    exists: Tensor,  # (b, hk, B) bool: whether anything of a block is seen; else it is no landmark
    time: Tensor | None,  # (B,), the latest of each block
    group: Tensor | None,  # (B,), the space of each block
    count: int,
) -> Tensor:  # (b, hk, B) int64
    """Number the bundle of each block, in 0 ... count - 1."""
    if count == 1:
        return torch.zeros_like(exists, dtype=torch.int64)
    with without_autocast(key):
        if group is not None:
            group = group.unique(return_inverse=True)[1]
        return _nearest_landmark(key, exists, time, group, count)


@bundle_blocks.register_fake
def _(key: Tensor, exists: Tensor, time: Any, group: Any, count: int) -> Tensor:
    return torch.empty_like(exists, dtype=torch.int64)


bundle_blocks.register_vmap(fold_into_batch(bundle_blocks, batched=2))


def _nearest_landmark(
    key: Float[Tensor, "b hk B d"],
    exists: Bool[Tensor, "b hk B"],
    time: Int[Tensor, " B"] | None,
    group: Int[Tensor, " B"] | None,
    count: int,
) -> Int[Tensor, "b hk B"]:
    # Who is seen later may not decide where landmarks are.
    ids = _landmarks(exists if time is None else torch.ones_like(exists), count, group)
    row = ids.flatten(2).clamp(min=0)
    seen = exists.gather(2, row).view(ids.shape)
    ids = ids.masked_fill(~seen, -1)  # (b, hk, S, G)
    marks = key.gather(2, row[..., None].expand(-1, -1, -1, key.shape[3]))
    marks = marks.unflatten(2, ids.shape[2:])
    space = exists.new_zeros(exists.shape[2], dtype=torch.int64) if group is None else group
    hidden = ids[:, :, space] < 0  # (b, hk, B, G)
    if time is not None:
        hidden = hidden | (time[ids[:, :, space].clamp(min=0)] > time[:, None])
    bundle = _nearest(key, marks, space, hidden)
    for _ in range(_ROUNDS if time is None else 0):
        marks = _centres(key, marks, space, bundle, exists)
        bundle = _nearest(key, marks, space, hidden)
    return bundle


def _nearest(
    key: Float[Tensor, "b hk B d"],
    marks: Float[Tensor, "b hk S G d"],
    space: Int[Tensor, " B"],
    hidden: Bool[Tensor, "b hk B G"],
) -> Int[Tensor, "b hk B"]:
    half = marks.square().sum(dim=-1) / 2
    if marks.shape[2] == 1:
        product = key @ marks[:, :, 0].mT
    else:
        product = (marks[:, :, space] @ key[..., None])[..., 0]
    return (half[:, :, space] - product).masked_fill(hidden, torch.inf).argmin(dim=-1)


def _centres(
    key: Float[Tensor, "b hk B d"],
    marks: Float[Tensor, "b hk S G d"],
    space: Int[Tensor, " B"],
    bundle: Int[Tensor, "b hk B"],
    exists: Bool[Tensor, "b hk B"],
) -> Float[Tensor, "b hk S G d"]:
    """The mean of each bundle; a mark of which nothing is nearest stays."""
    pair = torch.arange(bundle.shape[:2].numel(), device=key.device).view(*bundle.shape[:2], 1)
    rows = ((pair * marks.shape[2] + space) * marks.shape[3] + bundle).flatten()
    key = torch.cat([key, exists[..., None].to(key)], dim=-1)
    key = key.masked_fill(~exists[..., None], 0).flatten(0, 2)
    sums = add_rows_(key.new_zeros(marks.shape[:4].numel(), key.shape[1]), rows, key)
    mean, count = sums[:, :-1], sums[:, -1:]
    return torch.where(count > 0, mean / count.clamp(min=1), marks.flatten(0, 3)).view(marks.shape)


def _landmarks(
    exists: Bool[Tensor, "b hk B"], count: int, group: Int[Tensor, " B"] | None
) -> Int[Tensor, "b hk S G"]:
    """The blocks that are landmarks of each space; -1 for one that is named already."""
    there = exists[:, :, None]  # (b, hk, S, B)
    if group is not None:
        spaces = torch.arange(int(group.max()) + 1, device=exists.device)
        there = there & (group == spaces[:, None])
    rank = there.cumsum(dim=-1)
    total = rank[..., -1:]
    halves = 2 * torch.arange(count, device=exists.device) + 1
    wanted = halves * total // (2 * count)  # (b, hk, S, G), from 0
    ids = torch.searchsorted(rank, (wanted + 1).contiguous())
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    return ids.masked_fill(again | (total == 0), -1)


@dataclass(frozen=True)
class Layout:
    """Where each block stands, of some pairs of batch and head.

    There is one block more, which does not exist; it fills what is left of the tiles.

    Args:
        block: The block of each column, (l, N T).
        column: The first column of each block, (l, B + 1).
        bundle: The bundle of each tile, (l, N).
        count: How many bundles there are.
    """

    block: Int[Tensor, "l NT"]
    column: Int[Tensor, "l B1"]
    bundle: Int[Tensor, "l N"]
    count: int

    @classmethod
    def of(cls, bundle: Int[Tensor, "l B"], count: int, width: int | None = None) -> "Layout":
        """Lay out; `width` columns to a tile, None for as many as waste little."""
        pairs, blocks = bundle.shape[0], bundle.shape[1] + 1
        if width is None:
            width = blocks if count == 1 else max(1, blocks // (4 * count))
        tiles = (blocks + count * (width - 1)) // width
        bundle = torch.cat([bundle, bundle.new_full((pairs, 1), count - 1)], dim=1)
        sizes = bundle.new_zeros(pairs, count).scatter_add_(1, bundle, torch.ones_like(bundle))
        used = -(-sizes // width)  # tiles of each bundle
        last = used.cumsum(dim=1)
        order = bundle.argsort(dim=1, stable=True)
        ordered = bundle.gather(1, order)
        shift = width * (last - used) - (sizes.cumsum(dim=1) - sizes)
        place = torch.arange(blocks, device=bundle.device) + shift.gather(1, ordered)
        block = bundle.new_full((pairs, tiles * width), blocks - 1).scatter_(1, place, order)
        column = torch.empty_like(bundle).scatter_(1, order, place)
        number = torch.arange(tiles, device=bundle.device).expand(pairs, tiles).contiguous()
        of_tile = torch.searchsorted(last, number, right=True).clamp(max=count - 1)
        return cls(block, column, of_tile, count)

    @property
    def tiles(self) -> int:
        return self.bundle.shape[1]

    def of_pairs(self, pairs: slice) -> "Layout":
        return Layout(self.block[pairs], self.column[pairs], self.bundle[pairs], self.count)

    def lay_out(self, x: Tensor) -> Tensor:  # (l, B + 1, ...) -> (l, N T, ...)
        return _take(x, self.block)

    def collect(self, x: Tensor) -> Tensor:  # (l, N T, ...) -> (l, B, ...)
        """Undo `lay_out`, without the block that does not exist."""
        return _take(x, self.column[:, :-1])

    def to_tiles(self, x: Tensor) -> Tensor:  # (l, G, ...) -> (l, N, ...)
        return x if self.tiles == self.count == 1 else _take(x, self.bundle)

    def sum_tiles(self, x: Tensor) -> Tensor:  # (l, N, ...) -> (l, G, ...)
        """Add up the tiles of each bundle, always in the same order."""
        if self.tiles == self.count == 1:
            return x
        first = self.count * torch.arange(len(x), device=x.device)
        rows = (self.bundle + first[:, None]).flatten()
        total = x.new_zeros(len(x) * self.count, *x.shape[2:])
        if x.is_cuda:  # index_add is atomic there; this sorts
            total = total.index_put((rows,), x.flatten(0, 1), accumulate=True)
        else:
            total = total.index_add(0, rows, x.flatten(0, 1))
        return total.unflatten(0, (len(x), self.count))

    def largest(self, x: Tensor) -> Tensor:  # (l, N, r) -> (l, G, r), no gradient
        index = self.bundle[..., None].expand_as(x)
        least = x.new_full((len(x), self.count, x.shape[2]), -torch.inf)
        return least.scatter_reduce(1, index, x.detach(), "amax")


def _take(x: Tensor, rows: Int[Tensor, "l m"]) -> Tensor:  # (l, B, ...) -> (l, m, ...)
    if len(x) == 1:
        return x[0].index_select(0, rows[0])[None]
    first = x.shape[1] * torch.arange(len(x), device=x.device)
    return (
        x.flatten(0, 1)
        .index_select(0, (rows + first[:, None]).flatten())
        .view(*rows.shape, *x.shape[2:])
    )
