"""A second look: candidates are ranked by a finer product, against loops over numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import logit, rows, softmax, stand_in, voters_of

ESTIMATES = st.sampled_from(["mean", "site"])
PARTS = st.sampled_from([1, 2, 3, 100])


class TestRefine(RuleContract, CausalContract):
    def rules(self, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        share = st.sampled_from(["head", "group", "all"])
        first = st.builds(ndgpa.TopK, st.integers(1, 6), share=share, estimate=ESTIMATES)
        first |= st.builds(ndgpa.TopP, st.just(0.8), share=share)
        first |= st.sampled_from([ndgpa.StraightThrough(ndgpa.TopK(3)), ndgpa.Fixed((0,))])
        return st.builds(ndgpa.Refine, first, st.integers(1, 3), PARTS, ESTIMATES)


@given(st.data())
def test_the_best_candidates_are_kept(data: Any) -> None:
    problem, parts = data.draw(draw.problems()), data.draw(PARTS)
    estimate = data.draw(ESTIMATES)
    rule = ndgpa.TopK(
        data.draw(st.integers(1, 6)), share=data.draw(st.sampled_from(["head", "group", "all"]))
    )
    keep, query_mask = data.draw(st.integers(1, 4)), data.draw(query_masks(problem))
    options = problem.options | {"query_mask": query_mask}
    candidates, kept = (
        ndgpa.select(problem.query, problem.key, problem.structure, r, **options).blocks
        for r in (rule, ndgpa.Refine(rule, keep, parts, estimate))
    )
    assert kept.shape[:3] == candidates.shape[:3]
    for b in range(candidates.shape[0]):
        for s in range(candidates.shape[1]):
            for cell, names in enumerate(rows(candidates[b, s])):
                masks = [None if m is None else m[b] for m in (problem.key_mask, query_mask)]
                voters = voters_of(problem.structure, problem.key_structure, *masks)
                scores = looked_at(
                    problem, b, s, candidates.shape[1], cell, names, parts, voters, estimate
                )
                order = sorted(range(len(names)), key=lambda i: (-scores[i], i))
                assert rows(kept[b, s])[cell] == sorted(names[i] for i in order[:keep])


@st.composite
def query_masks(draw_: Any, problem: draw.Problem) -> Tensor | None:
    if draw_(st.booleans()):
        return None
    generator = draw.seeded(draw_(st.integers(0, 2**20)))
    return torch.rand(len(problem.query), problem.structure.num_sites, generator=generator) < 0.6


def looked_at(
    problem: draw.Problem,
    b: int,
    s: int,
    sharers: int,
    cell: int,
    names: list[int],
    parts: int,
    voters: list[bool],
    estimate: str,
) -> np.ndarray:
    """The relevance of the candidates, rounded so that what is equal ties."""
    space, keys = problem.structure, problem.key_structure
    heads, seen = problem.query.shape[1], [True] * keys.num_sites
    if problem.key_mask is not None:
        seen = problem.key_mask[b].tolist()
    asks = [part for i in rows(space.cells)[cell] for part in cut(space, i, parts, voters)]
    answers = [cut(keys, j, parts, seen) for j in names]
    total = np.zeros(len(names))
    for h in range(s * heads // sharers, (s + 1) * heads // sharers):
        query = problem.query[b, h].numpy()
        key = problem.key[b, h * problem.key.shape[1] // heads].numpy()
        for ask in asks:
            asking = stand_in(query[ask], estimate)
            of_block = [
                math.log(
                    sum(
                        len(part)
                        * math.exp(
                            logit(asking, stand_in(key[part], estimate), *_affinity(problem))
                        )
                        for part in of_one
                    )
                )
                for of_one in answers
            ]
            total += len(ask) * softmax(of_block)
    return total.round(12)


def _affinity(problem: draw.Problem) -> tuple[float, str]:
    return problem.logit_scale, problem.affinity


def cut(space: ndgpa.SpatialStructure, block: int, parts: int, there: list[bool]) -> list[Any]:
    """The parts of a block of which anything is there."""
    places = space.blocks[block].tolist()
    length = math.ceil(len(places) / parts)
    runs = [places[i : i + length] for i in range(0, len(places), length)]
    return [own for run in runs if (own := [x for x in run if x >= 0 and there[x]])]


@pytest.mark.parametrize("parts", [1, 4])
def test_equals_go_to_the_lowest_id(parts: int) -> None:
    x = torch.ones(1, 1, 32, 3)
    rule = ndgpa.Refine(ndgpa.Fixed((6, 1, 3, 4)), 2, parts)
    kept = ndgpa.select(x, x, ndgpa.Sequence(32, 4, 2), rule).blocks
    assert kept.tolist() == [[4 * [[1, 3]]]]


def test_a_block_with_one_strong_site_is_found_by_its_parts() -> None:
    """Block 1 has a mean of 0 and one site that the queries look for; its mean says nothing."""
    space = ndgpa.Sequence(8, 4)
    query = torch.ones(1, 1, 8, 1)
    key = torch.tensor([1.0, 1, 1, 1, 9, -9, 0, 0]).view(1, 1, 8, 1)
    by_mean, by_site = (
        ndgpa.select(query, key, space, rule).blocks.unique().tolist()
        for rule in (ndgpa.TopK(1), ndgpa.Refine(ndgpa.TopK(2), 1))
    )
    assert by_mean == [0]
    assert by_site == [1]


@given(st.data())
def test_candidates_of_another_group_are_not_kept(data: Any) -> None:
    space, parts = data.draw(draw.clusters(time=False, group=True)), data.draw(PARTS)
    x = torch.randn(1, 1, space.num_sites, 3, generator=draw.seeded(0))
    rule = ndgpa.Refine(ndgpa.Fixed(tuple(range(space.num_blocks))), 3, parts)
    kept = ndgpa.select(x, x, space, rule).blocks[0, 0].long()
    assert space.group is not None
    assert space.cell_group is not None
    same = space.group[kept.clamp(min=0)] == space.cell_group[:, None]
    assert bool((same | (kept < 0)).all())
    counts = (space.group == space.cell_group[:, None]).sum(dim=1).clamp(max=3)
    assert torch.equal((kept >= 0).sum(dim=1), counts)


@given(st.data())
def test_a_query_that_takes_no_part_has_no_say(data: Any) -> None:
    problem, parts = data.draw(draw.problems(masked=False)), data.draw(PARTS)
    mask = data.draw(query_masks(problem).filter(lambda mask: mask is not None))
    assert mask is not None
    causal = None not in (problem.structure.time, problem.key_structure.time)
    options = problem.options | {"query_mask": mask, "causal": causal}
    other = data.draw(draw.anything(problem.query))
    rule = ndgpa.Refine(ndgpa.TopK(4), 2, parts)
    before, after = (
        ndgpa.select(query, problem.key, problem.structure, rule, **options).blocks
        for query in (problem.query, problem.query.where(mask[:, None, :, None], other))
    )
    assert torch.equal(before, after)


def test_it_is_the_last_step_of_several_levels() -> None:
    generator = draw.seeded(0)
    query, key = (torch.randn(1, 2, 256, 4, generator=generator) for _ in range(2))
    space = ndgpa.Image((16, 16), 2)
    levels = ndgpa.MultiLevel((4, 9))
    candidates, kept = (
        ndgpa.select(query, key, space, r).blocks for r in (levels, ndgpa.Refine(levels, 3))
    )
    assert kept.shape == (1, 2, 64, 3)
    assert bool((kept[..., None] == candidates[..., None, :]).any(-1).all())


def test_a_slot_keeps_its_bias_and_its_gradient() -> None:
    generator = draw.seeded(0)
    query, key = (torch.randn(1, 1, 32, 4, generator=generator) for _ in range(2))
    query.requires_grad_()
    space, rule = ndgpa.Sequence(32, 4), ndgpa.SoftTopK(5)
    found = ndgpa.select(query, key, space, rule)
    kept = ndgpa.select(query, key, space, ndgpa.Refine(rule, 2))
    assert found.bias is not None
    assert kept.bias is not None
    for cell in range(8):
        bias = dict(zip(found.blocks[0, 0, cell].tolist(), found.bias[0, 0, cell].tolist()))
        for block, own in zip(kept.blocks[0, 0, cell].tolist(), kept.bias[0, 0, cell].tolist()):
            assert own == bias[block]
    assert torch.autograd.grad(kept.bias.square().sum(), query)[0].abs().sum() > 0


@pytest.mark.bad_input
def test_what_cannot_be_is_said() -> None:
    with pytest.raises(TypeError, match="Refine"):
        ndgpa.Refine(12, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        ndgpa.Refine(ndgpa.TopK(12), 0)
    with pytest.raises(ValueError, match="parts must be at least 1"):
        ndgpa.Refine(ndgpa.TopK(12), 3, 0)
    with pytest.raises(ValueError, match="unknown estimate 'box'"):
        ndgpa.Refine(ndgpa.TopK(12), 3, estimate="box")  # type: ignore[arg-type]
