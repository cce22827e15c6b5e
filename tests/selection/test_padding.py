"""Padding does not exist: as queries, keys and values at once, for every rule."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import draw
from ndgpa.testing.oracle import algorithm_1, most_relevant, relevance, rows
from tests.selection.test_multi_level import multi_levels
from tests.selection.test_top_k import top_ks

SHARE = st.sampled_from(["head", "group", "all"])


def learnt(problem: draw.Problem) -> st.SearchStrategy[Rule]:
    return st.one_of(
        st.builds(ndgpa.SoftTopK, st.integers(1, 3), share=SHARE),
        st.builds(ndgpa.PerturbedTopK, st.integers(1, 2), seed=st.just(3), share=SHARE),
        st.builds(ndgpa.StraightThrough, top_ks(problem)),
    )


def counted(problem: draw.Problem) -> st.SearchStrategy[Rule]:
    return st.one_of(
        st.builds(ndgpa.TopP, st.sampled_from([0.3, 0.9]), share=SHARE),
        st.builds(ndgpa.TopRatio, st.sampled_from([0.29, 0.5]), share=SHARE),
        st.builds(ndgpa.Fixed, st.just((0,))),
        st.just(ndgpa.Own()),
    )


def mixed(problem: draw.Problem) -> st.SearchStrategy[Rule]:
    one = learnt(problem) | counted(problem) | top_ks(problem)
    heads = problem.query.shape[1]
    return st.one_of(
        st.tuples(one, one).map(ndgpa.selection.Union),
        st.tuples(*[st.just(ndgpa.TopK(1)) | st.just(ndgpa.SoftTopK(2))] * heads).map(
            ndgpa.PerHead
        ),
    )


def windows(problem: draw.Problem) -> st.SearchStrategy[Rule]:
    return st.integers(0, 2).map(ndgpa.Window)


@pytest.mark.parametrize(
    "rules",
    [top_ks, counted, learnt, mixed, multi_levels, windows],
    ids=["top-k", "counted", "learnt", "mixed", "levels", "windows"],
)
@given(data=st.data())
def test_padding_changes_no_bit_of_what_is_not_padding(data: Any, rules: Any) -> None:
    causal = data.draw(st.booleans())
    time = True if causal else None
    spaces = draw.grids(time=time) if rules is windows else draw.structures(time=time)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    problem = data.draw(draw.problems(dtype, masked=True, same=True, spaces=spaces))
    rule, mask = data.draw(rules(problem)), problem.key_mask
    assert mask is not None
    filled = [x.where(mask[:, None, :, None], data.draw(draw.anything(x))) for x in problem.inputs]
    before, after = (
        ndgpa.gpa(*inputs, problem.structure, rule, causal=causal, **problem.options)
        for inputs in (problem.inputs, filled)
    )
    seen = mask[:, None, :, None].expand_as(before)
    assert torch.equal(before[seen], after[seen])


@given(st.data())
def test_a_query_mask_is_as_the_definition_says(data: Any) -> None:
    """Loops in which a query that takes no part is in no mean; on one space or two."""
    problem = data.draw(draw.problems())
    mask = _mask(problem.query, data)
    kind = data.draw(st.sampled_from(["mass", "logit"]))
    kept = ndgpa.select(
        problem.query,
        problem.key,
        problem.structure,
        ndgpa.TopK(2, kind),
        query_mask=mask,
        **problem.options,
    ).blocks
    tables = (problem.structure.blocks, problem.structure.cells, problem.key_structure.blocks)
    for b in range(len(kept)):
        seen = torch.ones(problem.key.shape[2]) if problem.key_mask is None else problem.key_mask[b]
        for h in range(problem.query.shape[1]):
            scores = relevance(
                problem.query[b, h].numpy(),
                problem.key[b, h * problem.key.shape[1] // problem.query.shape[1]].numpy(),
                *(rows(table) for table in tables),
                seen.bool().tolist(),
                problem.logit_scale,
                problem.affinity,
                kind,
                mask[b].tolist(),
            )
            assert rows(kept[b, h]) == [most_relevant(row, 2) for row in scores]


@given(st.data())
def test_attention_with_a_query_mask_is_algorithm_1(data: Any) -> None:
    problem = data.draw(draw.problems(masked=False))
    mask = _mask(problem.query, data)
    out = ndgpa.gpa(*problem.inputs, problem.structure, 2, query_mask=mask, **problem.options)
    spaces = problem.structure, problem.key_structure
    options = (2, problem.logit_scale, problem.affinity)
    expected = algorithm_1(*problem.inputs, *spaces, *options, query_mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@given(st.data())
def test_the_soft_share_of_a_block_counts_who_takes_part(data: Any) -> None:
    problem = data.draw(draw.problems(masked=False, max_batch=1))
    mask = _mask(problem.query, data)
    rule = ndgpa.SoftTopK(1, temperature=1e-6)
    soft, hard = (
        ndgpa.select(
            problem.query,
            problem.key,
            problem.structure,
            r,
            query_mask=mask,
            **problem.options,
        ).blocks
        for r in (rule, ndgpa.TopK(1))
    )
    cells = problem.structure.cell_of_site[mask[0]].unique()  # where somebody takes part
    for h in range(hard.shape[1]):
        for cell in cells.tolist():
            assert set(rows(hard[0, h, cell, None])[0]) <= set(rows(soft[0, h, cell, None])[0])


def test_what_is_no_key_is_no_query_in_self_attention_only() -> None:
    """By hand: the second of two queries of a cell is padding, and wants another block."""
    key = torch.tensor([9.0, 9.0, -9.0, -9.0]).view(1, 1, 4, 1)
    query = torch.tensor([1.0, -5.0, 0.0, 0.0]).view(1, 1, 4, 1)
    mask = torch.tensor([[True, False, True, True]])
    space, other = ndgpa.Sequence(4, 2), ndgpa.Sequence(4, 2)

    def first(**options: Any) -> int:
        return int(ndgpa.select(query, key, space, 1, **options).blocks[0, 0, 0, 0])

    assert first() == 1
    assert first(key_mask=mask) == 0
    assert first(key_mask=mask, query_mask=torch.ones_like(mask)) == 1
    assert first(key_mask=mask, key_structure=other) == 1
    assert first(query_mask=mask, key_structure=other) == 0


def test_a_cell_of_padding_alone_leaves_the_others_as_they_are() -> None:
    x = torch.randn(2, 2, 24, 4, generator=draw.seeded(0))
    mask = torch.arange(24).expand(2, -1) < 16
    long, short = ndgpa.Sequence(24, 2, 4), ndgpa.Sequence(16, 2, 4)
    for rule in (ndgpa.TopK(3), ndgpa.TopP(0.6), ndgpa.MultiLevel((2, 3)), ndgpa.SoftTopK(2)):
        padded = ndgpa.gpa(x, x, x, long, rule, key_mask=mask)[:, :, :16]
        alone = ndgpa.gpa(*[x[:, :, :16]] * 3, short, rule)
        np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.bad_input
def test_bad_query_masks_are_named() -> None:
    x, space = torch.zeros(1, 1, 8, 2), ndgpa.Sequence(8, 2)
    with pytest.raises(TypeError, match="query_mask must be a bool tensor, True where a query"):
        ndgpa.gpa(x, x, x, space, 1, query_mask=torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"query_mask must have shape \(batch, sites\) = \(1, 8\)"):
        ndgpa.select(x, x, space, 1, query_mask=torch.ones(1, 7, dtype=torch.bool))
    mask = torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="Antidiagonal takes no query_mask"):
        ndgpa.select(x, x, space, ndgpa.selection.Antidiagonal(2, 0.5), query_mask=mask)


def _mask(query: torch.Tensor, data: Any) -> torch.Tensor:
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    return torch.rand((query.shape[0], query.shape[2]), generator=generator) < 0.6
