"""The share of full attention that a selection keeps."""

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.analysis import coverage
from ndgpa.analysis._rows import logit_rows
from ndgpa.testing.draw import Problem, problems, seeded, selections


def share_of(problem: Problem, selection: ndgpa.Selection, **options: object) -> Tensor:
    return coverage(
        problem.query,
        problem.key,
        selection,
        problem.structure,
        **problem.options,
        **{"samples": None, **options},
    )


def by_loop(problem: Problem, selection: ndgpa.Selection, causal: bool) -> Tensor:
    """The definition, a query and a key at a time, in float64."""
    structure, key_structure = problem.structure, problem.key_structure
    batch, heads, sites, _ = problem.query.shape
    out = torch.ones(batch, heads, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            shares = []
            key = problem.key[b, h * problem.key.shape[1] // heads].double()
            chosen = selection.blocks[b, h * selection.blocks.shape[1] // heads]
            for x in range(sites):
                kept = set(chosen[structure.cell_of_site[x]].tolist())
                near = total = 0.0
                for y in range(key_structure.num_sites):
                    if problem.key_mask is not None and not problem.key_mask[b, y]:
                        continue
                    if causal and key_structure.time[y] > structure.time[x]:
                        continue
                    if not _same_group(structure, x, key_structure, y):
                        continue
                    q = problem.query[b, h, x].double()
                    product = float(q @ key[y])
                    if problem.affinity == "euclidean":
                        product = -float((q - key[y]).square().sum())
                    mass = math.exp(problem.logit_scale * product)
                    total += mass
                    near += mass * (int(key_structure.block_of_site[y]) in kept)
                if total > 0:
                    shares.append(near / total)
            if shares:
                out[b, h] = sum(shares) / len(shares)
    return out


def _same_group(
    structure: ndgpa.SpatialStructure, x: int, key_structure: ndgpa.SpatialStructure, y: int
) -> bool:
    if structure.group is None or key_structure.group is None:
        return True
    mine = structure.group[structure.block_of_site[x]]
    return bool(mine == key_structure.group[key_structure.block_of_site[y]])


@given(problems(), st.data())
def test_it_equals_the_loop(problem: Problem, data: st.DataObject) -> None:
    selection = data.draw(selections(problem))
    expected = by_loop(problem, selection, causal=False)
    torch.testing.assert_close(share_of(problem, selection), expected, rtol=1e-9, atol=1e-12)


@given(problems(time=True), st.data())
def test_it_equals_the_loop_when_causal(problem: Problem, data: st.DataObject) -> None:
    selection = data.draw(selections(problem))
    expected = by_loop(problem, selection, causal=True)
    got = share_of(problem, selection, causal=True)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_other_groups_are_not_part_of_the_mass() -> None:
    blocks = torch.tensor([0, 0, 1, 1, 2, 2])
    structure = ndgpa.Clusters(blocks, torch.tensor([0, 1, 2]), group=torch.tensor([0, 0, 1]))
    query = torch.zeros(1, 1, 6, 2)
    selection = ndgpa.select(query, query, structure, 1)
    # Uniform attention: one block of two in the first group, the only block in the second.
    share = coverage(query, query, selection, structure, samples=None)
    assert float(share) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)


def test_a_batch_of_none_has_shares_of_none() -> None:
    query, structure = torch.zeros(0, 2, 8, 3), ndgpa.Sequence(8, 2)
    assert coverage(query, query, ndgpa.select(query, query, structure, 1), structure).shape == (
        0,
        2,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(data=st.data())
def test_it_never_falls_as_more_blocks_are_kept_and_ends_at_one(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    problem = data.draw(problems(dtype=dtype))
    last = torch.zeros(problem.query.shape[:2], dtype=torch.float64)
    for k in range(1, problem.key_structure.num_blocks + 1):
        selection = ndgpa.select(
            problem.query, problem.key, problem.structure, k, **problem.options
        )
        share = share_of(problem, selection)
        assert (share >= last).all()
        last = share
    assert (last == 1).all()


@given(problems(), st.data())
def test_any_superset_of_blocks_covers_at_least_as_much(
    problem: Problem, data: st.DataObject
) -> None:
    more = data.draw(selections(problem))
    fewer = ndgpa.Selection(more.blocks[..., :1])
    assert (share_of(problem, fewer) <= share_of(problem, more)).all()


@given(problems(masked=True), st.data())
def test_masked_keys_are_never_read(problem: Problem, data: st.DataObject) -> None:
    selection = data.draw(selections(problem))
    expected = share_of(problem, selection)
    assert problem.key_mask is not None
    key = problem.key.masked_fill(~problem.key_mask[:, None, :, None], torch.nan)
    spoiled = problem.with_inputs(problem.query, key, problem.value)
    assert torch.equal(share_of(spoiled, selection), expected)


@given(problems(dtype=torch.float32), st.data())
def test_no_more_logits_are_held_than_a_chunk_allows(problem: Problem, data: st.DataObject) -> None:
    selection = data.draw(selections(problem))
    whole = share_of(problem, selection)
    one_query = problem.query.shape[:2].numel() * problem.key_structure.num_sites
    held = []

    def spy(*args: Any) -> Tensor:
        held.append(logit_rows(*args))
        return held[-1]

    with (
        mock.patch("ndgpa.analysis.coverage._CHUNK", 2 * one_query),
        mock.patch("ndgpa.analysis.coverage.logit_rows", spy),
    ):
        torch.testing.assert_close(share_of(problem, selection), whole)
    assert len(held) == -(-problem.structure.num_sites // 2)
    assert max(rows.numel() for rows in held) <= 2 * one_query


def test_a_sample_is_drawn_without_repetition_and_repeats_with_its_seed() -> None:
    structure = ndgpa.Image((16, 16), 4)
    query = 3 * torch.randn(1, 1, 256, 4, generator=seeded(0))
    selection = ndgpa.select(query, query, structure, 2)

    def share(**options: int | None) -> float:
        return float(coverage(query, query, selection, structure, **options))

    exact = share(samples=None)
    assert share(samples=256) == share(samples=10_000) == exact
    assert share(samples=64) == share(samples=64, seed=0) != share(samples=64, seed=1)
    assert share(samples=200) == pytest.approx(exact, abs=0.05)


def test_uniform_attention_is_covered_by_the_share_of_blocks() -> None:
    structure = ndgpa.Sequence(12, 3)
    query = torch.zeros(1, 2, 12, 5)
    selection = ndgpa.select(query, query, structure, 3)
    share = coverage(query, query, selection, structure)
    torch.testing.assert_close(share, torch.full((1, 2), 0.75))


def test_a_smooth_picture_is_covered_better_than_noise() -> None:
    """The paper's assumption A1: neighbours look at like places."""
    structure = ndgpa.Image((32, 32), 4, 2)
    noise = torch.randn(1, 1, 32, 32, generator=seeded(0))
    kernel = torch.ones(1, 1, 9, 9) / 81
    smooth = torch.nn.functional.conv2d(noise, kernel, padding=4)
    shares = []
    for image in (noise, smooth / smooth.std()):
        query = image.reshape(1, 1, 1024, 1)
        selection = ndgpa.select(query, query, structure, 4, scale=4.0, affinity="euclidean")
        share = coverage(
            query, query, selection, structure, scale=4.0, affinity="euclidean", samples=None
        )
        shares.append(float(share))
    assert shares[1] > 1.5 * shares[0]


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    structure = ndgpa.Sequence(8, 2)
    query = torch.zeros(1, 1, 8, 2)
    selection = ndgpa.select(query, query, structure, 2)
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        coverage(query, query, selection, structure, samples=0)
    with pytest.raises(ValueError, match="selection has 4 cells but structure has 2"):
        coverage(query, query, selection, ndgpa.Sequence(8, 4))
    far = ndgpa.Selection(torch.full((1, 1, 4, 1), 4))
    with pytest.raises(ValueError, match="selection names block 4 but key_structure has 4 blocks"):
        coverage(query, query, far, structure)
