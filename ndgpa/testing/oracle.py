"""Algorithm 1 of Jetchev et al. 2021 as literal loops in float64: slow, obvious, independent.

Selection is loops over numbers; attention is torch, so that the result has its gradients.
A space is given as plain lists: the sites of each block, the blocks of each cell.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import ndgpa

Lists = list[list[int]]


def rows(table: Tensor) -> Lists:
    """The members of each row of an index table."""
    return [[int(x) for x in row if x >= 0] for row in table]


def grid_blocks(shape: Sequence[int], block: Sequence[int]) -> Lists:
    """The sites of each block of a grid, from coordinates alone."""
    counts = [math.ceil(n / d) for n, d in zip(shape, block)]
    members: Lists = [[] for _ in range(math.prod(counts))]
    for site in range(math.prod(shape)):
        at = np.unravel_index(site, shape)
        members[int(np.ravel_multi_index([int(a) // d for a, d in zip(at, block)], counts))].append(
            site
        )
    return members


def logit(q: np.ndarray, k: np.ndarray, scale: float, affinity: str) -> float:
    if affinity == "dot":
        return scale * float(q @ k)
    return -scale * float((q - k) @ (q - k))


def softmax(logits: list[float], counts: list[int] | None = None) -> np.ndarray:
    """exp(logit) times count, divided by their sum; zeros if there is nothing."""
    counts = [1] * len(logits) if counts is None else counts
    if not any(counts):
        return np.zeros(len(logits))
    top = max(x for x, c in zip(logits, counts) if c)
    weights = np.array([c * math.exp(x - top) if c else 0.0 for x, c in zip(logits, counts)])
    return weights / weights.sum()


def relevance(
    query: np.ndarray,
    key: np.ndarray,
    blocks: Lists,
    cells: Lists,
    key_blocks: Lists,
    seen: list[bool],
    scale: float,
    affinity: str,
    kind: str = "mass",
    voters: list[bool] | None = None,
    estimate: str = "mean",
) -> np.ndarray:
    """r_lj for one query head and its key head; NaN for a block of which nothing is seen.

    A query that is no voter is in no mean and counts for nothing.
    """
    voters = [True] * len(query) if voters is None else voters
    seen_sites = [[y for y in block if seen[y]] for block in key_blocks]
    sizes = [len(block) for block in seen_sites]
    keys = [stand_in(key[b], estimate) if b else np.zeros(key.shape[1]) for b in seen_sites]
    result = np.zeros((len(cells), len(key_blocks)))
    for cell, members in enumerate(cells):
        for voting in ([x for x in blocks[i] if voters[x]] for i in members):
            if not voting:
                continue
            asks = stand_in(query[voting], estimate)
            logits = [logit(asks, k, scale, affinity) for k in keys]
            row = softmax(logits, sizes) if kind == "mass" else np.array(logits)
            result[cell] += len(voting) * row
    result[:, [j for j, size in enumerate(sizes) if size == 0]] = np.nan
    return result


def stand_in(features: np.ndarray, estimate: str) -> np.ndarray:
    """What stands for sites (m, d): their mean, or the middle one."""
    return features.mean(axis=0) if estimate == "mean" else features[len(features) // 2]


def voters_of(
    structure: ndgpa.SpatialStructure,
    key_structure: ndgpa.SpatialStructure,
    key_mask: Tensor | None,
    query_mask: Tensor | None = None,
) -> list[bool]:
    """Which queries of one sample take part in the selection; its masks are (n,), or None."""
    if query_mask is not None:
        return query_mask.tolist()
    if key_mask is not None and key_structure is structure:
        return key_mask.tolist()
    return [True] * structure.num_sites


def most_relevant(scores: np.ndarray, k: int, forced: Sequence[int] = ()) -> list[int]:
    """R_kappa: the k largest, of equals the lowest id, in addition to the forced."""
    free = [j for j in range(len(scores)) if j not in forced and not math.isnan(scores[j])]
    return sorted(sorted(free, key=lambda j: (-scores[j], j))[:k] + list(forced))


def attend_sites(
    query: Tensor, key: Tensor, value: Tensor, sites: list[int], scale: float, affinity: str
) -> Tensor:
    """Attend from queries (x, d) of one cell to the keys at the sites named, and to no others."""
    keys = key[sites]
    apart = query[:, None] - keys
    logits = query @ keys.mT if affinity == "dot" else -apart.square().sum(dim=-1)
    return torch.softmax(scale * logits, dim=-1) @ value[sites]


def algorithm_1(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    structure: ndgpa.SpatialStructure,
    key_structure: ndgpa.SpatialStructure,
    k: int,
    scale: float,
    affinity: str,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
) -> Tensor:
    """Both phases, for every batch and head on its own."""
    blocks, cells = rows(structure.blocks), rows(structure.cells)
    key_blocks = rows(key_structure.blocks)
    query, key, value = (x.double() for x in (query, key, value))
    q, ks = (x.detach().numpy() for x in (query, key))
    out = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    for b in range(query.shape[0]):
        own_masks = [None if mask is None else mask[b] for mask in (key_mask, query_mask)]
        seen = [True] * key.shape[2] if key_mask is None else key_mask[b].tolist()
        voters = voters_of(structure, key_structure, *own_masks)
        for h in range(query.shape[1]):
            g = h * key.shape[1] // query.shape[1]
            given = (q[b, h], ks[b, g], blocks, cells, key_blocks, seen, scale, affinity)
            scores = relevance(*given, voters=voters)
            for cell, members in enumerate(cells):
                kept = most_relevant(scores[cell], k)
                sites = [y for j in kept for y in key_blocks[j] if seen[y]]
                own = [x for i in members for x in blocks[i]]
                out[b, h, own] = attend_sites(
                    query[b, h, own], key[b, g], value[b, g], sites, scale, affinity
                )
    return out


def full_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, affinity: str, seen: Tensor | None
) -> Tensor:
    """Softmax over the keys that are seen: bool (batch or 1, queries or 1, keys), None for all."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if affinity == "dot":
        logits = scale * query @ key.mT
    else:
        logits = -scale * (query[..., :, None, :] - key[..., None, :, :]).square().sum(-1)
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0) @ value
