"""TopRatio, TopP, Neighborhood, Fixed, unions and rules of each head."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.selection.base import once
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import most_relevant, relevance, rows, voters_of


def blocks_of(problem: draw.Problem, rule: Rule, **options: Any) -> torch.Tensor:
    given_options = problem.options | options
    return ndgpa.select(problem.query, problem.key, problem.structure, rule, **given_options).blocks


def scores_of(problem: draw.Problem, b: int, h: int, kind: str = "mass") -> np.ndarray:
    seen = [True] * problem.key.shape[2]
    if problem.key_mask is not None:
        seen = problem.key_mask[b].tolist()
    mask = None if problem.key_mask is None else problem.key_mask[b]
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
        voters_of(problem.structure, problem.key_structure, mask),
    )


class TestTopRatio(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.TopRatio,
            st.sampled_from([0.1, 0.29, 0.5, 1.0]),
            st.integers(1, 3),
            st.sampled_from(["mass", "logit"]),
            st.sampled_from(["head", "group", "all"]),
        )


class TestTopP(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.TopP,
            st.sampled_from([0.1, 0.5, 0.9, 1.0]),
            st.integers(1, 2),
            st.sampled_from([None, 2, 4]),
            st.sampled_from(["head", "group", "all"]),
            st.sampled_from([None, ndgpa.Fixed((0,))]),
        )


class TestFixed(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        number = st.integers(0, problem.key_structure.num_blocks - 1)
        return st.lists(number, max_size=3).map(lambda ids: ndgpa.Fixed(tuple(ids)))


class TestUnion(RuleContract, CausalContract):
    """A union of all of them, so their causality too."""

    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        parts = (TestTopP, TestFixed, TestTopRatio)
        return st.tuples(*(part.rules(problem) for part in parts)).map(
            lambda rules: ndgpa.TopK(1, share="all") | rules[0] | rules[1] | rules[2]
        )


class TestPerHead(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        plain = TestTopP.rules(problem) | st.just(ndgpa.TopK(2)) | TestFixed.rules(problem)
        soft = st.just(ndgpa.SoftTopK(2)) | st.just(ndgpa.Fixed((0,)) | ndgpa.SoftTopK(1))
        heads = problem.query.shape[1]
        return (
            st.tuples(*[plain] * heads) | st.tuples(*[soft | st.just(ndgpa.TopK(1))] * heads)
        ).map(ndgpa.PerHead)


class TestOwn(RuleContract, CausalContract):
    @staticmethod
    def problems(**options: Any) -> st.SearchStrategy[draw.Problem]:
        return draw.problems(same=True, **options)

    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.just(ndgpa.Own())

    @given(st.data())
    def test_blocks_that_hold_the_sites_of_the_cell_less_those_wholly_later(
        self, data: Any
    ) -> None:
        """By loops: on the same sites, cut otherwise."""
        length = data.draw(st.integers(1, 30))
        queries = ndgpa.Sequence(length, data.draw(st.integers(1, length)))
        block = data.draw(st.integers(1, length))
        time = torch.randint(-5, 5, (length,), generator=draw.seeded(data.draw(st.integers(0, 99))))
        block_of_site = torch.arange(length) // block
        keys = ndgpa.Clusters(block_of_site, torch.arange(int(block_of_site[-1]) + 1), time)
        x = torch.zeros(1, 1, length, 1)
        kept = ndgpa.select(x, x, queries, ndgpa.Own(), key_structure=keys, causal=True).blocks
        for cell, sites in enumerate(rows(queries.cell_sites)):
            own = sorted({x // block for x in sites})
            until = int(queries.cell_span[1][cell])
            seen = [j for j in own if time[block_of_site == j].min() <= until]
            assert rows(kept[0, 0, cell, None]) == [seen]


class TestWindow(RuleContract, CausalContract):
    @staticmethod
    def problems(time: bool | None = None, **options: Any) -> st.SearchStrategy[draw.Problem]:
        return draw.problems(same=True, spaces=draw.grids(time=time), **options)

    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.integers(0, 2).map(ndgpa.Window)

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
    assert ndgpa.select(x, x, space, ndgpa.selection.Antidiagonal(2, 0.5)).blocks.shape == (
        0,
        2,
        4,
        4,
    )


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


@given(st.integers(1, 400), st.data())
def test_a_ratio_is_exact_whatever_a_float_makes_of_it(blocks: int, data: Any) -> None:
    """k of n blocks, and hundredths as they are written."""
    k, percent = data.draw(st.integers(1, blocks)), data.draw(st.integers(1, 100))
    x, causal = torch.zeros(1, 1, blocks, 1), data.draw(st.booleans())
    for ratio, wanted in ((k / blocks, k), (percent / 100, max(1, percent * blocks // 100))):
        time = torch.zeros(blocks).long()  # all blocks are past to every cell
        spaces = [ndgpa.Clusters(torch.arange(blocks), torch.zeros(blocks).int(), time)] * 2
        rule = ndgpa.TopRatio(ratio)
        kept = ndgpa.select(x, x, spaces[0], rule, causal=causal).blocks
        assert int((kept >= 0).sum()) == wanted


def test_29_hundredths_of_100_blocks_are_29() -> None:
    x, space = torch.zeros(1, 1, 100, 1), ndgpa.Sequence(100, 1, 100)
    for ratio, wanted in ((0.29, 29), (0.57, 57), (0.58, 58), (1 / 3, 33), (0.29999999, 29)):
        assert ndgpa.select(x, x, space, ndgpa.TopRatio(ratio)).blocks.shape[-1] == wanted


def test_the_block_that_reaches_p_is_the_last_one_read() -> None:
    """By hand: four equal blocks reach a half with two, in numbers that a float holds."""
    x, space = torch.zeros(1, 1, 4, 1), ndgpa.Sequence(4, 1)
    for p, wanted in ((0.25, [0]), (0.5, [0, 1]), (0.75, [0, 1, 2]), (0.76, [0, 1, 2, 3])):
        assert rows(ndgpa.select(x, x, space, ndgpa.TopP(p)).blocks[0, 0]) == [wanted] * 4


def test_antidiagonals_meet_queries_with_keys_in_reverse() -> None:
    """By hand: a run of two queries meets the block whose keys are the same run backwards."""
    query = torch.tensor([[9.0, 0.0], [0.0, 9.0]]).view(1, 1, 2, 2)
    key = torch.cat([query, query.flip(2)], dim=2)
    options = {"key_structure": ndgpa.Sequence(4, 2), "scale": 1.0}
    kept = ndgpa.select(
        query, key, ndgpa.Sequence(2, 2), ndgpa.selection.Antidiagonal(2, 0.5), **options
    )
    assert rows(kept.blocks[0, 0]) == [[1]]


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
    forced = () if rule.force is None else rule.force.blocks
    for h in range(problem.query.shape[1]):
        for cell, row in enumerate(scores_of(problem, 0, h)):
            free = [j for j in range(len(row)) if j not in forced and not math.isnan(row[j])]
            ranked = sorted(free, key=lambda j: (-row[j], j))
            total, reached, chosen = sum(row[j] for j in free), 0.0, []
            for j in ranked[: rule.at_most]:
                if len(chosen) >= rule.at_least and reached >= rule.p * total and rule.p < 1:
                    break
                chosen.append(j)
                reached += row[j]
            assert rows(kept[0, h, cell, None]) == [sorted([*chosen, *forced])]


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


@given(st.integers(0, 2**20), st.integers(1, 200))
def test_a_union_of_many_slots_keeps_each_block_with_its_first_bias(seed: int, width: int) -> None:
    """By a loop over the slots, long enough rows that a sort which is not stable shows."""
    generator = draw.seeded(seed)
    blocks = torch.randint(-1, 9, (1, 1, 3, width), generator=generator).int()
    bias = torch.randn(blocks.shape, generator=generator)
    merged = once(blocks, bias, 9)
    for cell in range(3):
        first: dict[int, float] = {}
        for block, number in zip(blocks[0, 0, cell].tolist(), bias[0, 0, cell].tolist()):
            if block >= 0:
                first.setdefault(block, number)
        assert rows(merged.blocks[0, 0, cell, None]) == [sorted(first)]
        kept = merged.bias[0, 0, cell, : len(first)].tolist()
        assert kept == [first[block] for block in sorted(first)]


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
        (lambda: ndgpa.selection.Union((3,)), TypeError, "Union needs rules; got int"),
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
        (ndgpa.TopP(0.5, force=ndgpa.Fixed((7,))), "Fixed names block 7"),
    ],
)
def test_rules_that_do_not_fit_are_named(rule: Rule, match: str) -> None:
    x = torch.randn(1, 2, 8, 1)
    with pytest.raises(ValueError, match=match):
        ndgpa.select(x, x, ndgpa.Sequence(8, 2), rule)
