"""What each rule may answer: an AssertionError, or nothing where it is right."""

import itertools
import math

import numpy as np
import torch

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing.oracle import softmax
from tests.literal.phase_1 import Phase1, heads_of
from tests.literal.phase_2 import NONE
from tests.problems import Problem


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
