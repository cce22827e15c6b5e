"""The far field literally: loops over batches, heads, sites and blocks."""

import math
from typing import Any

import torch
from torch import Tensor

import ndgpa
from ndgpa.attention.far_field import as_bundles
from ndgpa.structures import Sampling
from ndgpa.testing import draw
from ndgpa.testing.oracle import rows


def dense(
    problem: draw.Problem,
    selection: ndgpa.Selection,
    kind: Any,
    causal: bool,
    read: Sampling | None,
) -> Tensor:
    """Loops over batches, heads and sites; plain torch within, so that it has its gradients."""
    space, keys = problem.structure, problem.key_structure
    blocks = rows(keys.blocks if read is None else read.sites(keys))
    of_cell = space.cell_of_site.tolist()
    scale, affinity = problem.logit_scale, problem.affinity
    heads, outs = problem.query.shape[1], []
    for b in range(len(problem.query)):
        seen = [True] * keys.num_sites
        if problem.key_mask is not None:
            seen = problem.key_mask[b].tolist()
        sites = [[y for y in block if seen[y]] for block in blocks]
        for h in range(heads):
            g, s = (h * x.shape[1] // heads for x in (problem.key, selection.blocks))
            key, value = problem.key[b, g], problem.value[b, g]
            latest = [max(int(keys.time[y]) for y in block) for block in blocks] if causal else None
            bundled = as_bundles(kind)
            count = 1 if bundled is None else bundled.count
            bundle = bundles(key, sites, latest, None, count)
            for x in range(space.num_sites):
                slots = selection.blocks[b, s, of_cell[x]].tolist()
                near, far_blocks = (
                    [],
                    [j for j in range(len(blocks)) if j not in slots and sites[j]],
                )
                for slot, j in enumerate(slots):
                    for y in sites[j] if j >= 0 else []:
                        if causal and keys.time[y] > space.time[x]:
                            continue
                        added = (
                            0 if selection.bias is None else selection.bias[b, s, of_cell[x], slot]
                        )
                        near.append(
                            (
                                _logit(problem.query[b, h, x], key[y], scale, affinity) + added,
                                value[y],
                            )
                        )
                if causal:
                    members = [y for y in range(space.num_sites) if of_cell[y] == of_cell[x]]
                    begin = min(int(space.time[y]) for y in members)
                    now = int(space.time[x]) if kind == "site" else begin
                    far_blocks = [j for j in far_blocks if latest[j] <= now]
                outs.append(
                    _softmax_of(
                        near,
                        _far(
                            problem.query[b, h, x],
                            [[j] for j in far_blocks]
                            if kind == "site"
                            else _by_bundle(far_blocks, bundle),
                            sites,
                            key,
                            value,
                            scale,
                            affinity,
                        ),
                    )
                    if near or far_blocks
                    else 0 * value[0]
                )
    return torch.stack(outs).view(*problem.query.shape[:3], -1)


def _by_bundle(far_blocks, bundle):
    parts = [[j for j in far_blocks if bundle[j] == g] for g in sorted(set(bundle))]
    return [part for part in parts if part]


def _far(q, parts, sites, key, value, scale, affinity):
    """Logits and values of the far field: each part is one key."""
    found = []
    for part in parts:
        members = [y for j in part for y in sites[j]]
        logit = _logit(q, key[members].mean(dim=0), scale, affinity) + math.log(len(members))
        found.append((logit, value[members].mean(dim=0)))
    return found


def bundles(
    key: Tensor,
    sites: list[list[int]],
    latest: list[int] | None,
    group: list[int] | None,
    count: int,
) -> list[int]:
    """The bundle of each block, by k-means from evenly spaced landmarks of its space.

    If causal, of landmarks that are past, which do not move.
    """
    means = [key[members].mean(dim=0).detach() if members else None for members in sites]
    spaces = [0] * len(sites) if group is None else group
    marks: dict[int, list[tuple[int, Tensor] | None]] = {}
    for space in set(spaces):
        own = [i for i in range(len(sites)) if spaces[i] == space]
        own = own if latest is not None else [i for i in own if sites[i]]
        places = [own[(2 * g + 1) * len(own) // (2 * count)] for g in range(count) if own]
        marks[space] = [
            (i, means[i]) if sites[i] and i not in places[:g] else None
            for g, i in enumerate(places)
        ]
    found = [0] * len(sites)
    for _ in range(1 if latest is not None else 3):
        for j, mean in enumerate(means):
            nearest = math.inf
            for g, mark in enumerate(marks[spaces[j]]):
                if mark is None or mean is None:
                    continue
                if latest is not None and latest[mark[0]] > latest[j]:
                    continue
                distance = float((mark[1] - mean).square().sum())
                if distance < nearest - 1e-9:
                    found[j], nearest = g, distance
        for space, own_marks in marks.items():
            for g, mark in enumerate(own_marks):
                own = [
                    means[j]
                    for j in range(len(sites))
                    if spaces[j] == space and found[j] == g and sites[j]
                ]
                if mark is not None and own:
                    own_marks[g] = mark[0], torch.stack(own).mean(dim=0)
    return found


def _logit(q: Tensor, k: Tensor, scale: float, affinity: str) -> Tensor:
    return scale * (q @ k) if affinity == "dot" else -scale * (q - k).square().sum()


def _softmax_of(*parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    logits, values = zip(*(pair for part in parts for pair in part))
    return torch.stack(logits).softmax(dim=0) @ torch.stack(values)
