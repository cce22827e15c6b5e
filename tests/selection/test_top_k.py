"""TopK: the rule contract, the paper's relevance, ties, forced blocks, shared selections."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.selection import Rule, relevance as module
from ndgpa.selection.ranking import top_k_lowest_id
from ndgpa.testing import RuleContract, draw
from ndgpa.testing.oracle import most_relevant, relevance, rows, voters_of

ESTIMATES = st.sampled_from(["mean", "site"])


@st.composite
def top_ks(draw_: Any, problem: draw.Problem) -> ndgpa.TopK:
    force: Rule | None = None
    if draw_(st.booleans()):
        last = problem.key_structure.num_blocks - 1
        force = ndgpa.Fixed(tuple(draw_(st.lists(st.integers(0, last), max_size=2))))
        if problem.key_structure is problem.structure and draw_(st.booleans()):
            force = force | ndgpa.Own()
    return ndgpa.TopK(
        draw_(st.integers(1, 6)),
        draw_(st.sampled_from(["mass", "logit"])),
        draw_(st.sampled_from(["head", "group", "all"])),
        force,
        draw_(ESTIMATES),
    )


class TestTopK(RuleContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return top_ks(problem)


class TestOneCellATile(TestTopK):
    """The same with tiles as small as they can be."""

    @pytest.fixture(autouse=True)
    def _small_tiles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(module._TILE, "cpu", 1)


@given(st.data())
def test_the_k_most_relevant_are_kept(data: Any) -> None:
    """Against loops over blocks and cells, for every way to share and every forced block."""
    problem = data.draw(draw.problems())
    rule = data.draw(top_ks(problem))
    blocks = ndgpa.select(
        problem.query, problem.key, problem.structure, rule, **problem.options
    ).blocks
    cells = rows(problem.structure.cells)
    heads, key_heads = problem.query.shape[1], problem.key.shape[1]
    for b in range(problem.query.shape[0]):
        scores = np.stack([_scores(problem, b, h, rule) for h in range(heads)])
        sharers = {"head": heads, "group": key_heads, "all": 1}[rule.share]
        scores = scores.reshape(sharers, -1, *scores.shape[1:]).sum(axis=1)
        for s in range(sharers):
            for cell, members in enumerate(cells):
                forced = sorted(_forced(rule.force, members))
                expected = most_relevant(scores[s, cell], rule.k, forced)
                assert rows(blocks[b, s, cell, None]) == [expected]


def _forced(force: Rule | None, members: list[int]) -> set[int]:
    if isinstance(force, ndgpa.selection.Union):
        return set().union(*(_forced(rule, members) for rule in force.rules))
    if isinstance(force, ndgpa.Fixed):
        return set(force.blocks)
    return set(members) if isinstance(force, ndgpa.Own) else set()


def _scores(problem: draw.Problem, b: int, h: int, rule: ndgpa.TopK) -> np.ndarray:
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
        rule.relevance,
        voters_of(problem.structure, problem.key_structure, mask),
        rule.estimate,
    )


@given(draw.structures(), st.integers(1, 5))
def test_of_equal_blocks_the_lowest_id_wins(structure: Any, k: int) -> None:
    query = torch.randn(1, 1, structure.num_sites, 2)
    key = torch.ones(1, 1, 40, 2)
    blocks = ndgpa.select(query, key, structure, k, key_structure=ndgpa.Sequence(40, 4)).blocks
    assert blocks.unique(dim=2).tolist() == [[[list(range(k))]]]


def test_a_tie_at_the_border_of_the_kept_by_hand() -> None:
    key = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 0.0]).view(1, 1, 6, 1)
    query = torch.ones(1, 1, 1, 1)
    options = {"key_structure": ndgpa.Sequence(6, 1), "scale": 1.0}
    kept = [
        ndgpa.select(query, key, ndgpa.Sequence(1, 1), k, **options).blocks.flatten().tolist()
        for k in (1, 2, 3, 5)
    ]
    assert kept == [[1], [1, 2], [1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_site_finds_what_its_block_has_no_mean_for() -> None:
    """The sites of each block cancel out; the middle ones, number 2 of 4, tell the blocks apart."""
    x = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]]).repeat(2, 1).view(1, 1, 16, 1)
    space = ndgpa.Sequence(16, 4)
    mean, site = (
        ndgpa.select(x, x, space, ndgpa.TopK(2, estimate=estimate)).blocks[0, 0].tolist()
        for estimate in ("mean", "site")
    )
    assert mean == [[0, 1]] * 4
    assert site == [[0, 2], [1, 3]] * 2


def test_more_than_there_are_means_all() -> None:
    x = torch.randn(2, 3, 10, 4)
    blocks = ndgpa.select(x, x, ndgpa.Sequence(10, 2), 99).blocks
    assert torch.equal(blocks, torch.arange(5, dtype=torch.int32).expand(2, 3, 5, 5))


@given(draw.clusters(group=True), st.integers(1, 9), st.booleans())
def test_groups_do_not_see_each_other(clusters: ndgpa.Clusters, k: int, own: bool) -> None:
    x = torch.randn(1, 2, clusters.num_sites, 3, dtype=torch.float64)
    first = ndgpa.Fixed((0,))
    rule = ndgpa.TopK(k, force=ndgpa.Own() | first if own else first)
    blocks = ndgpa.select(x, x, clusters, rule).blocks
    assert clusters.group is not None
    for cell, members in enumerate(rows(clusters.cells)):
        group = int(clusters.group[members[0]])
        for row in rows(blocks[:, :, cell].flatten(0, 1)):
            assert set(clusters.group[row].tolist()) <= {group}
            available = int((clusters.group == group).sum())
            assert len(row) >= min(k, available)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, torch.inf, -torch.inf, torch.nan]), min_size=2),
    st.data(),
)
def test_of_equals_the_lowest_ids_are_taken_nan_and_infinities_included(
    scores: list[float], data: Any
) -> None:
    k = data.draw(st.integers(1, len(scores)))
    by_score = [
        (not math.isnan(x), -x if not math.isnan(x) else 0, i) for i, x in enumerate(scores)
    ]
    expected = {i for _, _, i in sorted(by_score)[:k]}
    rows = torch.tensor([[0.0] * len(scores), scores])  # the other row is full of ties as well
    found = top_k_lowest_id(rows, k)
    assert set(found[1].tolist()) == expected
    assert sorted(found[0].tolist()) == list(range(k))


@pytest.mark.parametrize("huge", [1e20, 1e30, -1e20])
def test_logits_that_overflow_name_no_block_twice(huge: float) -> None:
    """Heads of infinities of both signs, the sum of which is no number; and a forced block."""
    query, key = torch.ones(1, 4, 6, 2), torch.full((1, 4, 6, 2), huge)
    key[:, ::2] *= -1
    space = ndgpa.Sequence(6, 2)
    for kind in ("mass", "logit"):
        for scale in (1.0, 1e20):
            rule = ndgpa.TopK(2, kind, share="all", force=ndgpa.Fixed((1,)))
            kept = ndgpa.select(query * huge, key, space, rule, scale=scale).blocks
            assert kept.tolist() == [[[[0, 1, 2]] * 3]]


def test_infinities_of_both_signs_count_as_nothing() -> None:
    """By hand: two heads disagree beyond all bounds on block 0, and agree on block 1."""
    query = torch.full((1, 2, 1, 1), 1e20)
    key = torch.tensor([[1e20, 1e-20, 0.0], [-1e20, 1e-20, 0.0]]).view(1, 2, 3, 1)
    options = {"key_structure": ndgpa.Sequence(3, 1), "scale": 1.0}
    rule = ndgpa.TopK(1, "logit", share="all")
    assert ndgpa.select(query, key, ndgpa.Sequence(1, 1), rule, **options).blocks.item() == 1


@given(st.data())
def test_slots_hold_a_block_once_whatever_overflows(data: Any) -> None:
    problem = data.draw(draw.problems(torch.float32))
    rule = data.draw(top_ks(problem))
    huge = data.draw(st.sampled_from([1e20, 1e30, torch.inf, torch.nan]))
    query, key = huge * problem.query, 1e20 * problem.key
    kept = ndgpa.select(query, key, problem.structure, rule, **problem.options).blocks
    for row in rows(kept.flatten(0, 2)):
        assert len(set(row)) == len(row)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_query_that_is_no_number_has_no_say(lost: float, heads: int) -> None:
    """By hand: of two blocks of a cell, the one that is numbers decides; so with two heads."""
    key = torch.eye(4).view(1, 1, 4, 4).expand(1, heads, 4, 4)
    query = torch.zeros(1, heads, 2, 4)
    query[:, :, 0, 3], query[:, :, 1] = 9.0, lost
    options = {"key_structure": ndgpa.Sequence(4, 1), "scale": 1.0}
    rule = ndgpa.TopK(1, share="all")
    assert ndgpa.select(query, key, ndgpa.Sequence(2, 1, 2), rule, **options).blocks.item() == 3


def test_a_selection_shared_by_all_heads_sums_their_relevance() -> None:
    """Two heads that want different blocks, by hand."""
    key = torch.eye(4).view(1, 1, 4, 4).expand(1, 2, 4, 4)
    query = torch.zeros(1, 2, 1, 4)
    query[0, 0, 0, 3], query[0, 1, 0, 1] = 9.0, 5.0
    options = {"key_structure": ndgpa.Sequence(4, 1), "scale": 1.0}
    kept = ndgpa.select(query, key, ndgpa.Sequence(1, 1), ndgpa.TopK(2, share="all"), **options)
    assert kept.blocks.tolist() == [[[[1, 3]]]]


def test_relevance_of_sixteen_bit_inputs_is_computed_in_float32() -> None:
    x = torch.randn(1, 2, 64, 8).bfloat16()
    image = ndgpa.Image((8, 8), 2)
    narrow, wide = (ndgpa.select(y, y, image, 3).blocks for y in (x, x.float()))
    assert torch.equal(narrow, wide)


def test_what_is_always_read_is_looked_up_once_and_nothing_is_copied_from_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a CUDA graph can capture a call after the first."""
    space, x = ndgpa.Sequence(24, 4), torch.randn(1, 1, 24, 2)
    rule = ndgpa.TopK(1, force=ndgpa.Fixed((0, 3)) | ndgpa.Own())
    first = ndgpa.select(x, x, space, rule, causal=True).blocks
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(ndgpa.select(x, x, space, rule, causal=True).blocks, first)
    other = ndgpa.select(x, x, space, ndgpa.TopK(1, force=ndgpa.Own())).blocks
    assert not torch.equal(other[..., :2], first[..., :2])


@pytest.mark.parametrize("kind", ["mass", "logit"])
def test_equal_blocks_are_equal_to_the_last_bit(kind: str) -> None:
    """Sums over heads and places of float32 too, for any number of blocks."""
    for blocks in range(2, 20):
        space = ndgpa.Grid((blocks,), 1, blocks)
        for value in (0.3, 1.7, -2.9):
            x = torch.full((1, 3, blocks, 2), value)
            kept = ndgpa.select(x, x, space, ndgpa.TopK(2, kind, share="all")).blocks
            assert kept.tolist() == [[[[0, 1]]]]


@pytest.mark.parametrize("kind", ["mass", "logit"])
@pytest.mark.parametrize("junk", [math.nan, math.inf, 3e38])
def test_what_is_not_finite_leaves_no_slot_of_a_full_selection_empty(
    kind: str, junk: float
) -> None:
    """Kernels would read block 0 there."""
    for space in (ndgpa.Image((8, 8), 2, 1), ndgpa.Image((8, 8), 2, 2)):
        query, key = torch.randn(2, 1, 2, 64, 4, generator=torch.Generator().manual_seed(0))
        key[:, :, ::9] = junk
        for lost in (slice(0), slice(None, None, 7), slice(None)):
            query[:, :, lost] = junk
            for share in ("head", "all"):
                found = ndgpa.select(query, key, space, ndgpa.TopK(3, kind, share=share))
                assert found.full
                assert (found.blocks >= 0).all()


def test_a_full_selection_is_promised_where_no_slot_can_be_empty() -> None:
    space = ndgpa.Grid((7, 4), 2, 2, time_axis=0)
    x = torch.randn(2, 2, 28, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(28).expand(2, -1) > 20
    for k in (1, 3, 100):
        found = ndgpa.select(x, x, space, k)
        assert found.full
        assert (found.blocks >= 0).all()
    assert not ndgpa.select(x, x, space, 8, key_mask=mask).full
    assert not ndgpa.select(x, x, space, 8, causal=True).full
    assert not ndgpa.select(x, x, space, ndgpa.TopK(2, force=ndgpa.Own())).full
    groups = ndgpa.Clusters(torch.arange(28) // 4, torch.arange(7), group=torch.arange(7) % 2)
    assert not ndgpa.select(x, x, groups, 5).full
    straight = ndgpa.select(x, x, space, ndgpa.StraightThrough(ndgpa.TopK(2)))
    assert straight.full
    assert straight.bias is not None
