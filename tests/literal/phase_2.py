"""Phase 2 by loops: the output and the log-sum-exp of each query."""

import itertools
import math

from torch import Tensor

from ndgpa.testing.oracle import rows
from tests.problems import Problem

NONE = -math.inf


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    bias: Tensor | None,
    problem: Problem,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of each query, in the dtype of the query throughout."""
    space, keys = problem.structure, rows(problem.key_sites)
    heads, tables = query.shape[1], blocks.shape[1]
    out = value.new_zeros(*query.shape[:3], value.shape[3])
    lse = query.new_full(query.shape[:3], NONE)
    for b, h, (cell, sites) in itertools.product(
        range(len(query)), range(heads), enumerate(rows(space.cell_sites))
    ):
        g, t = h * key.shape[1] // heads, h * tables // heads
        for now, own in _by_time(problem, sites):
            reads = [
                (slot, y)
                for slot, block in enumerate(blocks[b, t, cell].tolist())
                for y in (keys[block] if block >= 0 else [])
                if exists(problem, b, y) and (now is None or problem.key_structure.time[y] <= now)
            ]
            if not reads:
                continue
            slots, ys = (list(x) for x in zip(*reads))
            logits = _logits(query[b, h, own], key[b, g, ys], problem)
            if bias is not None:
                logits = logits + bias[b, t, cell, slots].to(logits.dtype)
            out[b, h, own] = logits.softmax(dim=-1) @ value[b, g, ys]
            lse[b, h, own] = logits.logsumexp(dim=-1)
    return out, lse


def _by_time(problem: Problem, sites: list[int]) -> list[tuple[int | None, list[int]]]:
    """The sites of each time, which see the same keys; all at once where time does not matter."""
    if not problem.causal:
        return [(None, sites)]
    times = {x: int(problem.structure.time[x]) for x in sites}
    return [(now, [x for x in sites if times[x] == now]) for now in sorted(set(times.values()))]


def exists(problem: Problem, b: int, site: int) -> bool:
    return problem.key_mask is None or bool(problem.key_mask[b, site])


def _logits(query: Tensor, key: Tensor, problem: Problem) -> Tensor:  # (x, y)
    if problem.affinity == "dot":
        return problem.logit_scale * (query @ key.mT)
    return -problem.logit_scale * (query[:, None] - key).square().sum(dim=-1)
