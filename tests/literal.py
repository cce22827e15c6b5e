"""Algorithm 1 with all that a call may add to it, as literal loops: slow, obvious, independent.

What `tests/oracle.py` leaves out: groups, time, forced blocks, shares of the relevance, biases of
slots, sampled keys, log-sum-exp. Selection is loops over numbers; attention is torch in whatever
dtype it is given, so it is the truth in float64 and "plain torch" in any other.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from tests.oracle import logit, rows, softmax
from tests.problems import Problem

NONE = -math.inf


# Phase 2


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    bias: Tensor | None,
    problem: Problem,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of each query, in the dtype of the query throughout."""
    space, keys = problem.structure, rows(problem.key_structure.blocks)
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
                if _exists(problem, b, y) and (now is None or problem.key_structure.time[y] <= now)
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


def _exists(problem: Problem, b: int, site: int) -> bool:
    return problem.key_mask is None or bool(problem.key_mask[b, site])


def _logits(query: Tensor, key: Tensor, problem: Problem) -> Tensor:  # (x, y)
    if problem.affinity == "dot":
        return problem.logit_scale * (query @ key.mT)
    return -problem.logit_scale * (query[:, None] - key).square().sum(dim=-1)


# Phase 1


def spans(structure: ndgpa.SpatialStructure) -> list[tuple[int, int]]:
    """The earliest and the latest time of each block; of a grid's, as if it were whole."""
    if not isinstance(structure, ndgpa.Grid):
        times = [[int(structure.time[x]) for x in block] for block in rows(structure.blocks)]
        return [(min(x), max(x)) for x in times]
    axis = structure.time_axis
    length = structure.block_shape[axis]
    counts = [-(-n // d) for n, d in zip(structure.shape, structure.block_shape)]
    at = np.unravel_index(range(math.prod(counts)), counts)[axis]
    return [(int(i) * length, int(i) * length + length - 1) for i in at]


class Phase1:
    """What each cell may choose from, what it reads in any case, and how relevant it finds them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.blocks, self.cells = rows(problem.structure.blocks), rows(problem.structure.cells)
        self.key_blocks = rows(problem.key_structure.blocks)
        self.count = len(self.key_blocks)
        groups = problem.structure.group, problem.key_structure.group
        self.groups = None if None in groups else [x.tolist() for x in groups]
        if problem.causal:
            own, self.key_spans = spans(problem.structure), spans(problem.key_structure)
            self.now = [min(own[i][0] for i in members) for members in self.cells]
            self.until = [max(own[i][1] for i in members) for members in self.cells]

    def in_group(self, cell: int, block: int) -> bool:
        if self.groups is None:
            return True
        return self.groups[0][self.cells[cell][0]] == self.groups[1][block]

    def candidates(self, cell: int) -> list[int]:
        """Blocks of the cell's group; if causal, those wholly past at its earliest time."""
        return [
            j
            for j in range(self.count)
            if self.in_group(cell, j)
            and (not self.problem.causal or self.key_spans[j][1] <= self.now[cell])
        ]

    def visible(self, cell: int, named: list[int]) -> set[int]:
        """Those of the named that are not of another group, or wholly later."""
        return {
            j
            for j in named
            if j >= 0
            and self.in_group(cell, j)
            and (not self.problem.causal or self.key_spans[j][0] <= self.until[cell])
        }

    def straddling(self, cell: int) -> set[int]:
        """If causal, the blocks that the cell can see in part: read in any case."""
        if not self.problem.causal:
            return set()
        wanted = self.visible(cell, list(range(self.count)))
        return {j for j in wanted if self.key_spans[j][1] > self.now[cell]}

    def always(self, cell: int, force: Rule | None) -> set[int]:
        return self.visible(cell, self.forced(cell, force)) | self.straddling(cell)

    def forced(self, cell: int, force: Rule | None) -> list[int]:
        if isinstance(force, ndgpa.selection.Union):
            return [j for rule in force.rules for j in self.forced(cell, rule)]
        if isinstance(force, ndgpa.Fixed):
            return list(force.blocks)
        return self.cells[cell] if isinstance(force, ndgpa.Own) else []

    def seen(self, b: int) -> list[list[int]]:
        """The sites of each key block that the mask does not hide."""
        return [[y for y in block if _exists(self.problem, b, y)] for block in self.key_blocks]

    def voters(self, b: int, cell: int) -> list[list[int]]:
        """The sites of each block of the cell that say what is relevant."""
        sites = [self.blocks[i] for i in self.cells[cell]]
        if self.problem.hides_queries:
            sites = [[x for x in block if _exists(self.problem, b, x)] for block in sites]
        if self.problem.causal:
            time = self.problem.structure.time
            sites = [[x for x in block if time[x] == self.now[cell]] for block in sites]
        return [block for block in sites if block]

    def relevance(self, b: int, heads: list[int], cell: int, kind: str) -> tuple[np.ndarray, float]:
        """The relevance of every block for a cell, summed over heads, -inf for no candidate.

        And how large the numbers are that it was made of, from which its rounding errors follow.
        """
        problem, seen = self.problem, self.seen(b)
        query, key = (x.detach().double().numpy() for x in problem.inputs[:2])
        chosen = [j for j in self.candidates(cell) if seen[j]]
        result, size = np.full(self.count, NONE), 0.0
        result[chosen] = 0
        for h, sites in itertools.product(heads, self.voters(b, cell)):
            q, g = query[b, h, sites].mean(axis=0), h * key.shape[1] // query.shape[1]
            means = [key[b, g, seen[j]].mean(axis=0) for j in chosen]
            logits = [logit(q, k, problem.logit_scale, problem.affinity) for k in means]
            row = softmax(logits, [len(seen[j]) for j in chosen]) if kind == "mass" else logits
            result[chosen] += len(sites) * np.array(row)
            size += len(sites) * (1 + max((self._terms(q, k) for k in means), default=0.0))
        return result, size

    def _terms(self, q: np.ndarray, k: np.ndarray) -> float:
        """The sum of the sizes of what is added up to a logit."""
        squares = q @ q + k @ k if self.problem.affinity == "euclidean" else 0.0
        return abs(self.problem.logit_scale) * float(np.abs(q) @ np.abs(k) + squares)


def heads_of(table: int, tables: int, heads: int) -> list[int]:
    """The query heads that read a table of a selection."""
    return [h for h in range(heads) if h * tables // heads == table]


# What each rule may answer: an error, or nothing where it is right


class Answer:
    """One row of a selection beside the question: which blocks, with which biases, may it name?

    Rounding may turn the order of blocks that are as relevant; `slack` says how near that is.
    """

    def __init__(self, problem: Problem, phase: Phase1, selection: ndgpa.Selection) -> None:
        self.problem, self.phase = problem, phase
        self.blocks = selection.blocks
        self.bias = selection.bias

    def check(self, rule: Rule) -> None:
        batch, tables, cells, _ = self.blocks.shape
        for b, t, cell in itertools.product(range(batch), range(tables), range(cells)):
            row = self.blocks[b, t, cell].tolist()
            named = [j for j in row if j >= 0]
            assert len(set(named)) == len(named), f"cell {cell} names a block twice: {row}"
            heads = heads_of(t, tables, self.problem.query.shape[1])
            bias = None if self.bias is None else self.bias[b, t, cell].tolist()
            weights = {} if bias is None else {j: x for j, x in zip(row, bias) if j >= 0}
            try:
                CHECKS[type(rule)](self, rule, b, heads, cell, set(named), weights)
            except AssertionError as error:
                error.args = (f"batch {b}, heads {heads}, cell {cell}: {error}",)
                raise

    def scores(self, b: int, heads: list[int], cell: int, kind: str) -> tuple[np.ndarray, float]:
        result, size = self.phase.relevance(b, heads, cell, kind)
        wide = torch.promote_types(self.problem.query.dtype, torch.float32)
        return result, 64 * torch.finfo(wide).eps * size

    def are_equal(self) -> bool:
        """Whether all blocks are alike to the last bit, so that the lowest ids are right."""
        spaces = self.problem.structure, self.problem.key_structure
        return (
            self.problem.values == "constant"
            and self.problem.key_mask is None
            and all(x.is_even for x in spaces)
        )


def _most_relevant(answer, b, heads, cell, named, kind, force, most, least=None, p=None) -> None:
    """`named` is what is always read, and the `most` best of the rest (or fewer, by a share p)."""
    always = answer.phase.always(cell, force)
    assert always <= named, f"{always - named} are not read"
    scores, slack = answer.scores(b, heads, cell, kind)
    free = [j for j in range(len(scores)) if scores[j] > NONE and j not in always]
    chosen, left = named - always, [j for j in free if j not in named]
    assert chosen <= set(free), f"{chosen - set(free)} may not be read"
    if p is None or p == 1:
        assert len(chosen) == min(most, len(free)), f"{len(chosen)} blocks of {len(free)}"
    else:
        assert min(least, len(free)) <= len(chosen) <= most
    if not answer.phase.voters(b, cell):
        return  # nobody says what is relevant
    if chosen and left:
        worst, best = scores[list(chosen)].min(), scores[left].max()
        assert worst >= best - slack, f"{sorted(chosen)} are less relevant than {left}"
        if answer.are_equal():
            assert max(chosen) < min(left), f"of equals, {sorted(chosen)} are not the lowest"
    if p is not None and p < 1 and chosen:
        _reaches(p, scores, slack, chosen, free, most, least)


def _reaches(p, scores, slack, chosen, free, most, least) -> None:
    """`chosen` hold the share p of the relevance, and would not without the least of them."""
    total, have = scores[free].sum(), scores[list(chosen)].sum()
    if len(chosen) < min(most, len(free)):
        assert have >= p * total - slack, f"{sorted(chosen)} hold less than {p}"
    if len(chosen) > least:
        before = have - scores[list(chosen)].min()
        assert before <= p * total + slack, f"{sorted(chosen)} are more than it takes"


def _top_k(answer, rule, b, heads, cell, named, weights) -> None:
    _most_relevant(answer, b, heads, cell, named, rule.relevance, rule.force, rule.k)


def _top_ratio(answer, rule, b, heads, cell, named, weights) -> None:
    share = math.floor(round(rule.ratio * len(answer.phase.candidates(cell)), 6))
    most = max(rule.at_least, share)
    _most_relevant(answer, b, heads, cell, named, rule.relevance, rule.force, most)


def _top_p(answer, rule, b, heads, cell, named, weights) -> None:
    most = answer.phase.count if rule.at_most is None else rule.at_most
    options = ("mass", rule.force, most, rule.at_least, rule.p)
    _most_relevant(answer, b, heads, cell, named, *options)


def _exactly(named: set[int], wanted: set[int]) -> None:
    assert named == wanted, f"reads {sorted(named)} instead of {sorted(wanted)}"


def _fixed(answer, rule, b, heads, cell, named, weights) -> None:
    table = rule.blocks if rule.blocks.ndim == 1 else rule.blocks[cell]
    _exactly(named, answer.phase.visible(cell, table.tolist()))


def _own(answer, rule, b, heads, cell, named, weights) -> None:
    _exactly(named, answer.phase.visible(cell, answer.phase.cells[cell]))


def _window(answer, rule, b, heads, cell, named, weights) -> None:
    grid, radius = answer.problem.structure, np.array(rule.radius)
    at = np.stack(np.unravel_index(range(grid.num_blocks), grid.grid_of_blocks), -1)
    own = at[answer.phase.cells[cell]]
    near = [j for j, x in enumerate(at) if (abs(own - x) <= radius).all(axis=1).any()]
    _exactly(named, answer.phase.visible(cell, near))


def _multi_level(answer, rule, b, heads, cell, named, weights) -> None:
    """All where all are kept; else no more than there is room for, and none that is not there."""
    always, seen = answer.phase.always(cell, rule.force), answer.phase.seen(b)
    free = {j for j in answer.phase.candidates(cell) if seen[j]} - always
    assert always <= named, f"{always - named} are not read"
    assert named - always <= free, f"{named - always - free} may not be read"
    assert len(named - always) <= rule.keep[-1]
    if min(rule.keep) >= answer.phase.count:
        _exactly(named, free | always)


def _straight_through(answer, rule, b, heads, cell, named, weights) -> None:
    CHECKS[type(rule.rule)](answer, rule.rule, b, heads, cell, named, {})
    assert not any(weights.values()), f"biases {weights} in the forward"


def _soft_top_k(answer, rule, b, heads, cell, named, weights) -> None:
    """The weights are clip(log r / temperature - tau, 0, 1) for the tau at which they sum to k."""
    besides = answer.phase.straddling(cell)
    assert besides <= named, f"{besides - named} are not read"
    assert all(weights[j] == 0 for j in besides)
    scores, _ = answer.scores(b, heads, cell, "mass")
    free = [j for j in range(len(scores)) if scores[j] > NONE]
    if not free or not answer.phase.voters(b, cell) or not scores[free].min() > 1e-30:
        return  # a logarithm of nothing
    x = np.log(scores[free] / scores[free].sum()) / rule.temperature
    wide = torch.promote_types(answer.problem.query.dtype, torch.float32)
    _, size = answer.phase.relevance(b, heads, cell, "mass")
    slack = 256 * torch.finfo(wide).eps * (size + abs(x).max())
    found = np.array([math.exp(weights[j]) if j in named else 0.0 for j in free])
    assert abs(found - _projection(x, rule.k)).max() <= slack, f"weights {found}"


def _projection(x: np.ndarray, k: int) -> np.ndarray:
    """Of numbers between 0 and 1 that sum to k, the nearest to x; all 1 where there are no more."""
    if len(x) <= k:
        return np.ones(len(x))
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.clip(x - tau, 0, 1).sum() > k else (low, tau)
    return np.clip(x - tau, 0, 1)


def _perturbed_top_k(answer, rule, b, heads, cell, named, weights) -> None:
    """Each sample names k of the candidates, so the weights sum to k."""
    besides, seen = answer.phase.straddling(cell), answer.phase.seen(b)
    assert besides <= named, f"{besides - named} are not read"
    free = {j for j in answer.phase.candidates(cell) if seen[j]}
    assert named - besides <= free, f"{named - besides - free} may not be read"
    if not answer.phase.voters(b, cell):
        return
    total = sum(math.exp(weights[j]) for j in named - besides)
    scores, _ = answer.scores(b, heads, cell, "mass")
    if scores[sorted(free)].min(initial=1) > 1e-30:
        assert abs(total - min(rule.k, len(free))) < 1e-5, f"weights sum to {total}"


def _antidiagonal(answer, rule, b, heads, cell, named, weights) -> None:
    """Query s of a run of sites meets key stride - 1 - s of another; a share p of the softmax."""
    phase, problem, (h,) = answer.phase, answer.problem, heads
    query, key = (x.detach().double().numpy() for x in problem.inputs[:2])
    g = h * key.shape[1] // query.shape[1]
    runs = [
        (j, y)
        for j, sites in enumerate(phase.key_blocks)
        for y in zip(*[iter(sites)] * rule.stride)
    ]
    scores, size = np.zeros(phase.count), 0.0
    for sites in (phase.blocks[i] for i in phase.cells[cell]):
        for x in zip(*[iter(sites)] * rule.stride):
            pairs = [query[b, h, list(reversed(x))] * key[b, g, list(y)] for _, y in runs]
            scale = problem.logit_scale / rule.stride
            for (j, _), mass in zip(runs, softmax([scale * terms.sum() for terms in pairs])):
                scores[j] += mass
            size += 1 + max(abs(scale) * abs(terms).sum() for terms in pairs)
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    slack, everything = 64 * torch.finfo(wide).eps * size, list(range(phase.count))
    if rule.p == 1:
        _exactly(named, set(everything))
        return
    left = [j for j in everything if j not in named]
    if left:
        assert scores[list(named)].min() >= scores[left].max() - slack, f"not the best: {named}"
    _reaches(rule.p, scores, slack, named, everything, phase.count, 1)


CHECKS = {
    ndgpa.TopK: _top_k,
    ndgpa.TopRatio: _top_ratio,
    ndgpa.TopP: _top_p,
    ndgpa.Fixed: _fixed,
    ndgpa.Own: _own,
    ndgpa.Window: _window,
    ndgpa.MultiLevel: _multi_level,
    ndgpa.StraightThrough: _straight_through,
    ndgpa.SoftTopK: _soft_top_k,
    ndgpa.PerturbedTopK: _perturbed_top_k,
    ndgpa.selection.Antidiagonal: _antidiagonal,
}
