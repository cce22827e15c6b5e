"""TopRatio, TopP, Neighborhood, Fixed, unions and rules of each head."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import ndgpa
from ndgpa.selection import Rule
from tests import draw
from tests.contracts.rule import RuleContract
from tests.oracle import most_relevant, relevance, rows
from tests.selection.causal_contract import CausalContract


def blocks_of(problem: draw.Problem, rule: Rule, **options: Any) -> torch.Tensor:
    given_options = problem.options | options
    return ndgpa.select(problem.query, problem.key, problem.structure, rule, **given_options).blocks


def scores_of(problem: draw.Problem, b: int, h: int, kind: str = "mass") -> np.ndarray:
    seen = [True] * problem.key.shape[2]
    if problem.key_mask is not None:
        seen = problem.key_mask[b].tolist()
    return relevance(
        problem.query[b, h].numpy(),
        problem.key[b, h * problem.key.shape[1] // problem.query.shape[1]].numpy(),
        rows(problem.structure.blocks),
        rows(problem.structure.cells),
        rows(problem.key_structure.blocks),
        seen,
        problem.logit_scale,
        problem.affinity,
        kind,
    )


class TestTopRatio(RuleContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.TopRatio,
            st.sampled_from([0.1, 0.29, 0.5, 1.0]),
            st.integers(1, 3),
            st.sampled_from(["mass", "logit"]),
            st.sampled_from(["head", "group", "all"]),
        )


class TestTopP(RuleContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.TopP,
            st.sampled_from([0.1, 0.5, 0.9, 1.0]),
            st.integers(1, 2),
            st.sampled_from([None, 2, 4]),
            st.sampled_from(["head", "group", "all"]),
            st.sampled_from([(), (0,)]),
        )


class TestFixed(RuleContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        number = st.integers(0, problem.key_structure.num_blocks - 1)
        return st.lists(number, max_size=3).map(lambda ids: ndgpa.Fixed(tuple(ids)))


class TestUnion(RuleContract, CausalContract):
    """A union of all of them, so their causality too."""

    @classmethod
    def causal_rules(cls, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return cls.rules(problem)

    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        parts = (TestTopP, TestFixed, TestTopRatio)
        return st.tuples(*(part.rules(problem) for part in parts)).map(
            lambda rules: ndgpa.TopK(1, share="all") | rules[0] | rules[1] | rules[2]
        )


class TestPerHead(RuleContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        one = TestTopP.rules(problem) | st.just(ndgpa.TopK(2)) | TestFixed.rules(problem)
        heads = problem.query.shape[1]
        return st.tuples(*[one] * heads).map(ndgpa.PerHead)


class TestNeighborhood:
    @given(st.data())
    def test_blocks_within_the_radius_and_no_others(self, data: Any) -> None:
        grid = data.draw(draw.grids())
        radius = tuple(data.draw(st.integers(0, 2)) for _ in grid.shape)
        x = torch.zeros(2, 1, grid.num_sites, 1)
        kept = ndgpa.select(x, x, grid, ndgpa.Window(radius)).blocks
        at = np.stack(np.unravel_index(range(grid.num_blocks), grid.grid_of_blocks), -1)
        for cell, members in enumerate(rows(grid.cells)):
            apart = np.abs(at[:, None] - at[members]).min(axis=1)
            near = (apart <= np.array(radius)).all(axis=1)
            assert rows(kept[0, 0, cell, None]) == [near.nonzero()[0].tolist()]

    @given(draw.grids(time=True), st.integers(0, 2))
    def test_wholly_later_blocks_are_left_out(self, grid: ndgpa.Grid, radius: int) -> None:
        x = torch.zeros(1, 1, grid.num_sites, 1)
        kept = ndgpa.select(x, x, grid, ndgpa.Window(radius), causal=True).blocks[0, 0]
        everything = ndgpa.select(x, x, grid, ndgpa.Window(radius)).blocks[0, 0]
        for cell, row in enumerate(rows(kept)):
            until = grid.time[grid.cell_sites[cell][grid.cell_sites[cell] >= 0]].max()
            seen = [j for j in rows(everything)[cell] if grid.block_span[0][j] <= until]
            assert row == seen

    def test_it_needs_one_structure_that_knows_what_is_near(self) -> None:
        x = torch.zeros(1, 1, 4, 1)
        with pytest.raises(ValueError, match="on one structure"):
            ndgpa.select(
                x, x, ndgpa.Sequence(4, 2), ndgpa.Window(1), key_structure=ndgpa.Sequence(4, 1)
            )
        clusters = ndgpa.Clusters(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0]))
        with pytest.raises(NotImplementedError, match="does not know which blocks are near"):
            ndgpa.select(x, x, clusters, ndgpa.Window(1))
        with pytest.raises(ValueError, match="radius has 2 entries but the grid has 1 axes"):
            ndgpa.select(x, x, ndgpa.Sequence(4, 2), ndgpa.Window((1, 1)))
        with pytest.raises(ValueError, match="at least 0"):
            ndgpa.select(x, x, ndgpa.Sequence(4, 2), ndgpa.Window(-1))


def test_antidiagonals_of_a_batch_of_none_select_nothing() -> None:
    x, space = torch.zeros(0, 2, 16, 3), ndgpa.Sequence(16, 4)
    assert ndgpa.select(x, x, space, ndgpa.Antidiagonal(2, 0.5)).blocks.shape == (0, 2, 4, 4)


@given(st.data())
def test_the_ratio_counts_the_blocks_that_a_cell_may_choose_from(data: Any) -> None:
    problem = data.draw(draw.problems(masked=False, max_batch=1))
    rule = data.draw(TestTopRatio.rules(problem))
    assume(rule.share == "head")
    kept = blocks_of(problem, rule)
    blocks = problem.key_structure.num_blocks
    count = max(rule.at_least, math.floor(rule.ratio * blocks + 1e-9))
    for h in range(problem.query.shape[1]):
        scores = scores_of(problem, 0, h, rule.relevance)
        assert rows(kept[0, h]) == [most_relevant(row, count) for row in scores]


def test_a_causal_ratio_grows_with_the_past() -> None:
    """By hand: of 0, 1, 2, 3 past blocks a half; and the own one, read in part."""
    x = torch.ones(1, 1, 8, 1)
    kept = ndgpa.select(x, x, ndgpa.Sequence(8, 2), ndgpa.TopRatio(0.5), causal=True).blocks
    assert rows(kept[0, 0]) == [[0], [0, 1], [0, 2], [0, 3]]
    kept = ndgpa.select(x, x, ndgpa.Sequence(8, 1), ndgpa.TopRatio(0.5), causal=True).blocks
    assert [len(row) for row in rows(kept[0, 0])] == [1, 1, 1, 2, 2, 3, 3, 4]


@given(draw.clusters(group=True))
def test_a_ratio_counts_within_the_group(clusters: ndgpa.Clusters) -> None:
    x = torch.randn(1, 1, clusters.num_sites, 2)
    kept = ndgpa.select(x, x, clusters, ndgpa.TopRatio(0.5)).blocks[0, 0]
    for cell, row in enumerate(rows(kept)):
        own = int((clusters.group == clusters.cell_group[cell]).sum())
        assert len(row) == max(1, own // 2)


@given(st.data())
def test_blocks_are_kept_until_p_is_reached(data: Any) -> None:
    """A loop: the largest first, of equals the lowest id; stop once the sum has reached p."""
    problem = data.draw(draw.problems(max_batch=1))
    rule = data.draw(TestTopP.rules(problem))
    assume(rule.share == "head")
    kept = blocks_of(problem, rule)
    for h in range(problem.query.shape[1]):
        for cell, row in enumerate(scores_of(problem, 0, h)):
            free = [j for j in range(len(row)) if j not in rule.force and not math.isnan(row[j])]
            ranked = sorted(free, key=lambda j: (-row[j], j))
            total, reached, chosen = sum(row[j] for j in free), 0.0, []
            for j in ranked[: rule.at_most]:
                if len(chosen) >= rule.at_least and reached >= rule.p * total and rule.p < 1:
                    break
                chosen.append(j)
                reached += row[j]
            assert rows(kept[0, h, cell, None]) == [sorted([*chosen, *rule.force])]


def test_a_cell_of_one_peak_reads_one_block() -> None:
    """By hand: one query is certain, the other is not."""
    key = 9 * torch.eye(4).view(1, 1, 4, 4)
    query = torch.stack([torch.eye(4)[2], torch.zeros(4)]).view(1, 1, 2, 4)
    options = {"key_structure": ndgpa.Sequence(4, 1), "scale": 1.0}
    kept = ndgpa.select(query, key, ndgpa.Sequence(2, 1), ndgpa.TopP(0.7), **options).blocks
    assert rows(kept[0, 0]) == [[2], [0, 1, 2]]


@given(st.data())
def test_a_union_reads_what_either_reads(data: Any) -> None:
    problem = data.draw(draw.problems())
    one = data.draw(TestTopP.rules(problem))
    other = data.draw(TestTopRatio.rules(problem))
    both = blocks_of(problem, one | other)
    heads = both.shape[1]
    a, b = (blocks_of(problem, rule) for rule in (one, other))
    a, b = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (a, b))
    for mine, first, second in zip(*(rows(x.flatten(0, 2)) for x in (both, a, b))):
        assert mine == sorted({*first, *second})


def test_a_union_keeps_the_bias_of_the_first_rule_that_names_a_block() -> None:
    class Biased(Rule):
        def __init__(self, blocks: list[int], bias: list[float]) -> None:
            self.answer = ndgpa.Selection(
                torch.tensor(blocks, dtype=torch.int32).view(1, 1, 1, -1),
                torch.tensor(bias).view(1, 1, 1, -1),
            )

        def select(self, problem: Any) -> ndgpa.Selection:
            return self.answer

    x = torch.randn(1, 1, 8, 2)
    union = Biased([3, 1], [0.3, 0.1]) | ndgpa.Fixed((0,)) | Biased([2, 1], [0.2, 9.0])
    selection = ndgpa.select(x, x, ndgpa.Sequence(8, 2, 4), union)
    assert selection.blocks.flatten().tolist() == [0, 1, 2, 3, -1]
    assert selection.bias.flatten().tolist()[:4] == pytest.approx([0.0, 0.1, 0.2, 0.3])


@given(st.data())
def test_each_head_follows_its_rule(data: Any) -> None:
    problem = data.draw(draw.problems(masked=False))
    rule = data.draw(TestPerHead.rules(problem))
    kept = blocks_of(problem, rule)
    heads, key_heads = problem.query.shape[1], problem.key.shape[1]
    for h, own in enumerate(rule.rules):
        if getattr(own, "share", "head") != "head":
            continue
        g = h * key_heads // heads
        alone = ndgpa.select(
            problem.query[:, h : h + 1],
            problem.key[:, g : g + 1],
            problem.structure,
            own,
            **problem.options,
        ).blocks
        assert rows(kept[:, h].flatten(0, 1)) == rows(alone[:, 0].flatten(0, 1))


def test_heads_of_one_rule_share_within_their_group() -> None:
    query, key = torch.randn(2, 4, 32, 3), torch.randn(2, 2, 32, 3)
    rule, space = ndgpa.TopK(2, share="group"), ndgpa.Sequence(32, 4)
    shared = ndgpa.select(query, key, space, rule).blocks.repeat_interleave(2, dim=1)
    assert torch.equal(ndgpa.select(query, key, space, ndgpa.PerHead((rule,) * 4)).blocks, shared)


def test_fixed_blocks_of_each_cell_by_hand() -> None:
    x = torch.randn(2, 1, 6, 1)
    rule = ndgpa.Fixed(torch.tensor([[2, 0], [1, -1], [2, 2]]))
    kept = ndgpa.select(x, x, ndgpa.Sequence(6, 2), rule).blocks
    assert kept.tolist() == [[[[0, 2], [1, -1], [2, -1]]]] * 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ndgpa.TopP(0.0), ValueError, r"p must lie in \(0, 1\]; got 0"),
        (lambda: ndgpa.TopP(1.5), ValueError, r"p must lie in \(0, 1\]; got 1.5"),
        (lambda: ndgpa.TopP("a"), TypeError, "p must be a number"),
        (lambda: ndgpa.TopP(0.5, 3, 2), ValueError, "at_most 2 is less than at_least 3"),
        (lambda: ndgpa.TopRatio(-0.1), ValueError, r"ratio must lie in \(0, 1\]"),
        (lambda: ndgpa.TopRatio(0.5, relevance="x"), ValueError, "unknown relevance 'x'"),
        (lambda: ndgpa.Fixed(torch.zeros(2)), TypeError, "int32 or int64 tensor"),
        (lambda: ndgpa.Union((3,)), TypeError, "Union needs rules; got int"),
        (lambda: ndgpa.PerHead([]), TypeError, "PerHead needs a tuple of rules"),
        (lambda: ndgpa.TopK(2) | 3, TypeError, "unsupported operand"),
    ],
)
def test_bad_rules_are_named(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (ndgpa.Fixed((9,)), "Fixed names block 9 but key_structure has 4 blocks"),
        (ndgpa.Fixed(torch.zeros(3, 1).int()), "Fixed has blocks for 3 cells"),
        (ndgpa.PerHead((ndgpa.TopK(1),)), "PerHead has 1 rules but query has 2 heads"),
        (ndgpa.TopP(0.5, force=(7,)), "force contains block 7"),
    ],
)
def test_rules_that_do_not_fit_are_named(rule: Rule, match: str) -> None:
    x = torch.randn(1, 2, 8, 1)
    with pytest.raises(ValueError, match=match):
        ndgpa.select(x, x, ndgpa.Sequence(8, 2), rule)
