"""Spaces with special tokens: the contract of a structure, and laws that only they have."""

import pickle

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import rows


class TestWithTokens(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return draw.with_tokens()

    def coarse_time(self, structure: SpatialStructure, latest: list[int]) -> list[int]:
        """A grid counts its times anew, tokens keep theirs."""
        count = structure.inner.num_blocks
        coarse = structure.inner.coarsen(1).time
        assert coarse is not None
        return coarse.tolist() + latest[count:]


class TestLine(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        count = st.integers(1, 20)
        return st.builds(Line, count, st.integers(1, 6))


def test_tokens_follow_the_blocks_and_cells_of_the_space() -> None:
    space = ndgpa.with_tokens(ndgpa.Sequence(5, 2, 2), prefix=3, suffix=1)
    assert rows(space.blocks) == [[3, 4], [5, 6], [7], [0, 1], [2], [8]]
    assert rows(space.cells) == [[0, 1], [2], [3], [4], [5]]
    assert space.time is not None
    assert space.time.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5]


def test_tokens_have_the_times_that_they_are_given() -> None:
    space = ndgpa.with_tokens(ndgpa.Sequence(3, 1), 1, 1, time=torch.tensor([1, 0]))
    assert space.time is not None
    assert space.time.tolist() == [1, 0, 1, 2, 0]


def test_no_tokens_are_the_space_itself() -> None:
    image = ndgpa.Image((4, 4), 2)
    assert ndgpa.with_tokens(image, 0, 0) is image


def test_a_space_with_tokens_can_be_pickled_and_printed() -> None:
    space = ndgpa.with_tokens(ndgpa.Video((2, 4, 4), 2), 1, 2)
    again = pickle.loads(pickle.dumps(space))
    assert torch.equal(again.time, space.time)
    assert repr(space) == (
        "with_tokens(Grid(shape=(2, 4, 4), block_shape=(2, 2, 2), cell_shape=(1, 1, 1), "
        "time_axis=0), prefix=1, suffix=2)"
    )


@given(draw.problems(spaces=draw.with_tokens()))
def test_tokens_have_no_say_in_the_selection(problem: draw.Problem) -> None:
    own, keys = problem.structure, problem.key_structure
    whole = ndgpa.select(problem.query, problem.key, own, 2, **problem.options)
    queries = slice(own.prefix, own.prefix + own.inner.num_sites)
    reads = slice(keys.prefix, keys.prefix + keys.inner.num_sites)
    mask = None if problem.key_mask is None else problem.key_mask[:, reads]
    voters = mask if own.inner is keys.inner else None
    options = {**problem.options, "key_structure": keys.inner, "key_mask": mask}
    alone = ndgpa.select(
        problem.query[:, :, queries],
        problem.key[:, :, reads],
        own.inner,
        2,
        query_mask=voters,
        **options,
    )
    assert torch.equal(whole.blocks, alone.blocks)


def test_the_far_field_takes_part_beside_tokens() -> None:
    """One softmax over selected sites, means of the other blocks and tokens, by hand."""
    grid = ndgpa.Sequence(8, 2)
    space = ndgpa.with_tokens(grid, 1, 1)
    query, key, value = torch.randn(3, 1, 1, 10, 3, dtype=torch.float64)
    selection = ndgpa.Selection(torch.tensor([[[[0], [2], [-1], [3]]]], dtype=torch.int32))
    out = ndgpa.attend(query, key, value, selection, space, far="site", scale=1.0)
    means = [x[0, 0, 1:9].view(4, 2, 3).mean(dim=1) for x in (key, value)]
    for site in range(1, 9):
        own = int(selection.blocks[0, 0, (site - 1) // 2, 0])
        near = [0, 9] + ([1 + 2 * own, 2 + 2 * own] if own >= 0 else [])
        far = [block for block in range(4) if block != own]
        keys = torch.cat([key[0, 0, near], means[0][far]])
        values = torch.cat([value[0, 0, near], means[1][far]])
        sizes = torch.tensor([1.0] * len(near) + [2.0] * len(far), dtype=torch.float64)
        weights = (keys @ query[0, 0, site] + sizes.log()).softmax(dim=0)
        torch.testing.assert_close(out[0, 0, site], weights @ values)


def test_the_coarse_branch_is_between_blocks_of_the_space_alone() -> None:
    image = ndgpa.Image((4, 6), 2)
    space = ndgpa.with_tokens(image, 2, 1)
    query, key, value = torch.randn(3, 1, 2, 27, 4)
    plain, both = (ndgpa.GPA(2, coarse=c)(query, key, value, space) for c in (None, "add"))
    sites = [x[:, :, 2:26] for x in (query, key, value)]
    alone = ndgpa.GPA(2, coarse="add")(*sites, image) - ndgpa.GPA(2)(*sites, image)
    expected = torch.zeros_like(plain)
    expected[:, :, 2:26] = alone
    torch.testing.assert_close(both - plain, expected)


@pytest.mark.bad_input
def test_tokens_that_do_not_fit_are_refused() -> None:
    image, video = ndgpa.Image((4, 4), 2), ndgpa.Video((2, 4, 4), 2)
    groups = ndgpa.disjoint([image, image])
    for error, text, call in (
        (TypeError, "structure must be a SpatialStructure; got int", lambda: ndgpa.with_tokens(3)),
        (TypeError, "prefix must be an int; got 1.0", lambda: ndgpa.with_tokens(image, 1.0)),
        (TypeError, "prefix must be an int; got True", lambda: ndgpa.with_tokens(image, True)),
        (ValueError, "suffix must be at least 0; got -1", lambda: ndgpa.with_tokens(image, 1, -1)),
        (NotImplementedError, "structure with groups", lambda: ndgpa.with_tokens(groups)),
        (
            ValueError,
            "structure has tokens already",
            lambda: ndgpa.with_tokens(ndgpa.with_tokens(image)),
        ),
        (
            ValueError,
            "time is given for the tokens but structure has no time",
            lambda: ndgpa.with_tokens(image, time=torch.tensor([0])),
        ),
        (
            ValueError,
            "time has 1 entries but there are 2 tokens",
            lambda: ndgpa.with_tokens(video, 2, time=torch.tensor([0])),
        ),
        (
            NotImplementedError,
            "structure 1 has special tokens",
            lambda: ndgpa.disjoint([image, ndgpa.with_tokens(image)]),
        ),
    ):
        with pytest.raises(error, match=text):
            call()


@pytest.mark.bad_input
def test_a_call_without_the_tokens_is_refused() -> None:
    space, x = ndgpa.with_tokens(ndgpa.Image((4, 4), 2)), torch.randn(1, 1, 16, 4)
    with pytest.raises(ValueError, match="query has 16 sites but structure has 17"):
        ndgpa.gpa(x, x, x, space, 2)
