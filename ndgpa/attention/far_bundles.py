"""Bundles of far blocks: blocks whose mean keys are alike, which share one key.

A bundle is what is nearest to a landmark. The landmarks of a space are the mean keys of some of its
blocks, evenly spaced among those of which anything is seen; of equally near ones the first counts.
Twice each landmark moves to the mean of its bundle, as in k-means. If causal, landmarks stay, and a
block looks only at those that are past when it is, so that its bundle does not depend on later
keys. Bundles carry no gradient.
"""

import math
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
    pair = torch.arange(math.prod(bundle.shape[:2]), device=key.device).view(*bundle.shape[:2], 1)
    rows = ((pair * marks.shape[2] + space) * marks.shape[3] + bundle).flatten()
    key = torch.cat([key, exists[..., None].to(key)], dim=-1)
    key = key.masked_fill(~exists[..., None], 0).flatten(0, 2)
    sums = add_rows_(key.new_zeros(math.prod(marks.shape[:4]), key.shape[1]), rows, key)
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
    if torch.onnx.is_in_onnx_export():  # which has no search
        ids = (rank[:, :, :, None] <= wanted[..., None]).sum(dim=-1)
    else:
        ids = torch.searchsorted(rank, (wanted + 1).contiguous())
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    return ids.masked_fill(again | (total == 0), -1)
