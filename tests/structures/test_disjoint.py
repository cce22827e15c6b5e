"""Many spaces as one: the contract, and equality with each on its own."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.structures.base import SpatialStructure
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import algorithm_1, rows


@st.composite
def batches(draw_: Any, time: bool | None = None) -> list[SpatialStructure]:
    time = draw_(st.booleans()) if time is None else time
    return draw_(st.lists(draw.structures(time=time), min_size=1, max_size=3))


class TestDisjoint(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return batches().map(ndgpa.disjoint)


@draw.FEW
@given(batches(time=False), st.integers(1, 4), st.integers(0, 2**20))
def test_a_batch_equals_single_runs_forward_and_backward(
    batch: list[SpatialStructure], kept: int, seed: int
) -> None:
    generator = draw.seeded(seed)
    each = [
        [
            torch.randn(
                1, 2, structure.num_sites, 3, generator=generator, dtype=torch.float64
            ).requires_grad_()
            for _ in range(3)
        ]
        for structure in batch
    ]
    weights = [torch.randn(x[0].shape, generator=generator, dtype=torch.float64) for x in each]
    joined = [torch.cat(x, dim=2).detach().requires_grad_() for x in zip(*each)]
    out = ndgpa.gpa(*joined, ndgpa.disjoint(batch), kept)
    single = [ndgpa.gpa(*x, structure, kept) for x, structure in zip(each, batch)]
    close(out, torch.cat(single, dim=2))
    out.backward(torch.cat(weights, dim=2))
    for x, weight in zip(single, weights):
        x.backward(weight)
    for whole, parts in zip(joined, zip(*each)):
        close(whole.grad, torch.cat([x.grad for x in parts], dim=2))


@given(batches(time=False), st.integers(0, 2**20))
def test_a_batch_is_algorithm_1_on_each_space(batch: list[SpatialStructure], seed: int) -> None:
    """Against literal loops, which know no group."""
    generator = draw.seeded(seed)
    each = [
        [torch.randn(1, 1, s.num_sites, 3, generator=generator, dtype=torch.float64) for _ in "qkv"]
        for s in batch
    ]
    joined = [torch.cat(x, dim=2) for x in zip(*each)]
    expected = [algorithm_1(*x, s, s, 2, 0.7, "dot") for x, s in zip(each, batch)]
    out = ndgpa.gpa(*joined, ndgpa.disjoint(batch), 2, scale=0.7)
    close(out, torch.cat(expected, dim=2))


@draw.FEW
@given(batches(time=False), st.integers(0, 2**20))
def test_another_space_is_never_read(batch: list[SpatialStructure], seed: int) -> None:
    """NaN in every space but one changes nothing in that one, forward or backward."""
    structure = ndgpa.disjoint(batch)
    generator = draw.seeded(seed)
    inputs = [
        torch.randn(1, 1, structure.num_sites, 3, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]
    assert structure.group is not None
    first = structure.group[structure.block_of_site] == 0
    poisoned = [x.masked_fill(~first[:, None], torch.nan).requires_grad_() for x in inputs]
    clean = [x.clone().requires_grad_() for x in inputs]
    outs = [ndgpa.gpa(*x, structure, 2)[:, :, first] for x in (clean, poisoned)]
    assert torch.equal(*outs)
    for out in outs:
        out.sum().backward()
    for mine, theirs in zip(clean, poisoned):
        assert torch.equal(mine.grad[:, :, first], theirs.grad[:, :, first])


def test_tables_by_hand() -> None:
    one = ndgpa.Clusters(torch.tensor([1, 0, 1]), torch.tensor([0, 0]))
    both = ndgpa.disjoint([one, ndgpa.Grid(4, 2)])
    assert rows(both.blocks) == [[1], [0, 2], [3, 4], [5, 6]]
    assert rows(both.cells) == [[0, 1], [2], [3]]
    assert both.group.tolist() == [0, 0, 1, 1]
    assert both.time is None


def test_times_are_kept() -> None:
    both = ndgpa.disjoint([ndgpa.Sequence(3, 1), ndgpa.Sequence(2, 1)])
    assert both.time.tolist() == [0, 1, 2, 0, 1]


@given(batches(), batches())
def test_a_batch_of_batches_is_one_batch(
    one: list[SpatialStructure], other: list[SpatialStructure]
) -> None:
    timed = [s for s in one + other if s.time is not None]
    plain = [s for s in one + other if s.time is None]
    for spaces in (timed, plain):
        if not spaces:
            continue
        nested = ndgpa.disjoint([ndgpa.disjoint(spaces), *spaces[:1], ndgpa.disjoint(spaces)])
        flat = ndgpa.disjoint([*spaces, spaces[0], *spaces])
        for name in ("blocks", "cells", "group", "time"):
            mine, theirs = getattr(nested, name), getattr(flat, name)
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("structures", "error", "words"),
    [
        ([], ValueError, "disjoint got no structures; it needs at least one"),
        ([ndgpa.Sequence(4, 2), 3], TypeError, "structure 1 must be a SpatialStructure; got int"),
        (
            [ndgpa.Sequence(4, 2), ndgpa.Image((2, 2), 1)],
            ValueError,
            "structure 1 has no time but structure 0 has$",
        ),
        (
            [ndgpa.Sequence(4, 2), ndgpa.Sequence(4, 2).to("meta")],
            ValueError,
            "the structures are on different devices: cpu, meta",
        ),
    ],
)
def test_spaces_that_do_not_fit_together_are_refused(
    structures: list[Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ndgpa.disjoint(structures)


def close(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
