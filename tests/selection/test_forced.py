"""Any rule can be forced: its blocks are read besides, once, and are no candidates."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import rows

SHARE = st.sampled_from(["head", "group", "all"])


def forces(problem: draw.Problem) -> st.SearchStrategy[Rule]:
    """Rules that look at queries and keys, alone and in unions with those that do not."""
    seen = st.builds(ndgpa.TopK, st.integers(1, 2), share=st.just("all"))
    unseen = st.just(ndgpa.Fixed((0,)))
    if problem.key_structure is problem.structure:
        unseen = unseen | st.just(ndgpa.Own())
    return seen | st.builds(lambda a, b: a | b, unseen, seen)


class TestForced(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        force = forces(problem)
        return st.one_of(
            st.builds(ndgpa.TopK, st.integers(1, 3), share=SHARE, force=force),
            st.builds(ndgpa.TopP, st.just(0.5), share=SHARE, force=force),
            st.builds(ndgpa.MultiLevel, st.just((2,)), share=SHARE, force=force),
        )

    causal_rules = rules


def blocks_of(problem: draw.Problem, rule: Rule, causal: bool = False) -> Tensor:
    given = problem.query, problem.key, problem.structure
    return ndgpa.select(*given, rule, causal=causal, **problem.options).blocks


@given(st.data(), st.integers(1, 4), st.integers(1, 4), SHARE, st.booleans())
def test_the_k_best_besides_the_m_best_are_the_k_plus_m_best(
    data: Any, k: int, m: int, share: str, causal: bool
) -> None:
    problem = data.draw(draw.problems(time=True))
    kind = data.draw(st.sampled_from(["mass", "logit"]))
    forced = ndgpa.TopK(k, kind, share, force=ndgpa.TopK(m, kind, share))
    one, other = (
        rows(blocks_of(problem, rule, causal).flatten(0, 2))
        for rule in (forced, ndgpa.TopK(k + m, kind, share))
    )
    assert one == other


@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_levels_read_the_k_best_besides_the_m_best(data: Any, k: int, m: int) -> None:
    problem = data.draw(draw.problems(masked=False))
    image = ndgpa.Image((8, 8), 1)
    key = torch.randn(*problem.key.shape[:2], 64, problem.key.shape[3], dtype=torch.float64)
    levels, one = (
        ndgpa.select(problem.query, key, problem.structure, rule, key_structure=image).blocks
        for rule in (ndgpa.MultiLevel((99, k), force=ndgpa.TopK(m)), ndgpa.TopK(k + m))
    )
    assert rows(levels.flatten(0, 2)) == rows(one.flatten(0, 2))


@given(st.data(), st.integers(1, 9))
def test_forced_blocks_are_read_and_the_rest_is_chosen_without_them(data: Any, k: int) -> None:
    """The k best of the rest: as many as there are, none less relevant than one left out."""
    problem = data.draw(draw.problems(masked=False))
    force = data.draw(forces(problem))
    named, every = (
        rows(blocks_of(problem, rule).expand(-1, problem.query.shape[1], -1, -1).flatten(0, 2))
        for rule in (force, ndgpa.TopK(999))
    )
    ranking = [
        rows(blocks_of(problem, ndgpa.TopK(n)).flatten(0, 2))
        for n in range(1, problem.key_structure.num_blocks + 1)
    ]
    found = rows(blocks_of(problem, ndgpa.TopK(k, force=force)).flatten(0, 2))
    for row, blocks in enumerate(found):
        best = [next(iter(set(b[row]) - set(a[row]))) for a, b in itertools.pairwise(ranking)]
        order = [j for j in ranking[0][row] + best if j not in named[row]]
        assert len(order) + len(named[row]) == len(every[row])
        assert set(blocks) == set(named[row]) | set(order[:k])


def test_forced_blocks_of_each_example_and_head() -> None:
    """By hand: every example and head forces the block of its largest key; block 0 is the best."""
    key = torch.zeros(2, 2, 4, 1)
    for b, h, block in ((0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 1)):
        key[b, h, block] = -9.0
    query = torch.ones(2, 2, 1, 1)
    options = {"key_structure": ndgpa.Sequence(4, 1), "scale": 1.0}
    rule = ndgpa.TopK(1, force=LeastKey())
    blocks = ndgpa.select(query, key, ndgpa.Sequence(1, 1), rule, **options).blocks
    assert blocks[:, :, 0].tolist() == [[[0, 1], [0, 2]], [[0, 3], [0, 1]]]


class LeastKey(Rule):
    def select(self, problem: ndgpa.Problem) -> ndgpa.Selection:
        return ndgpa.Selection(problem.key.argmin(dim=2)[:, :, None].int())


def test_vmap_maps_what_is_forced() -> None:
    space, rule = ndgpa.Image((8, 8), 1, 2), ndgpa.TopK(2, force=ndgpa.TopK(1))
    query, key = (torch.randn(3, 2, 2, 64, 4, generator=draw.seeded(h)) for h in (2, 1))

    def blocks(query: Tensor, key: Tensor) -> Tensor:
        return ndgpa.select(query, key, space, rule).blocks

    expected = torch.stack([blocks(q, k) for q, k in zip(query, key)])
    assert torch.equal(torch.vmap(blocks)(query, key), expected)


def test_rules_of_equal_forced_blocks_are_equal() -> None:
    """So `PerHead` answers for their heads together."""
    one, other = (ndgpa.TopK(2, force=ndgpa.Fixed((0, 3)) | ndgpa.Own()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert ndgpa.Fixed((0,)) != ndgpa.Fixed((1,))
    table = torch.tensor([0])
    assert ndgpa.Fixed(table) == ndgpa.Fixed(table)
    assert ndgpa.Fixed(table) != ndgpa.Fixed(table.clone())


def test_a_tensor_of_blocks_is_not_kept_by_the_structure() -> None:
    space, x = ndgpa.Sequence(8, 2), torch.randn(1, 1, 8, 2)
    for _ in range(3):
        ndgpa.select(x, x, space, ndgpa.TopK(1, force=ndgpa.Fixed(torch.tensor([0]))))
    assert len(space._kept.get(space, {})) == 0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (ndgpa.TopK(1, force=ndgpa.SoftTopK(1)), "force cannot be a rule whose selection has a b"),
        (ndgpa.TopK(1, share="all", force=ndgpa.TopK(1)), "force selects for 2 heads, but"),
        (ndgpa.MultiLevel((2, 1), share="all", force=ndgpa.TopK(1)), "make 1; use share='head'"),
    ],
)
def test_rules_that_cannot_be_forced_are_named(rule: Rule, match: str) -> None:
    x = torch.randn(1, 2, 8, 1)
    with pytest.raises(ValueError, match=match):
        ndgpa.select(x, x, ndgpa.Sequence(8, 2), rule)
