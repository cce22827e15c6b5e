"""Who hears of whom, against walks through the graph; and the claims about sparse patterns."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.analysis import (
    fewest_steps,
    has_full_information,
    information_flow,
    path_counts,
    picture_of_masks,
    plot_flow,
)
from ndgpa.operators import LocalSparse, MultiAxis, Neighborhood


def steps_of(pattern: str, *shape: int, order: str = "raster", mend: bool = True) -> list[Tensor]:
    return list(LocalSparse(pattern, order, mend=mend).mask(ndgpa.Grid(shape, 1)))


def share(steps: list[Tensor]) -> float:
    return float(information_flow(steps).double().mean())


# The definitions


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 2**20))
def test_flow_and_counts_are_those_of_the_paths(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = [
        torch.rand(after, before, generator=generator) < 0.5
        for before, after in itertools.pairwise(sizes)
    ]
    counts = torch.zeros(sizes[-1], sizes[0], dtype=torch.float64)
    for path in itertools.product(*map(range, sizes)):
        if all(step[b, a] for step, (a, b) in zip(steps, itertools.pairwise(path))):
            counts[path[-1], path[0]] += 1
    assert torch.equal(path_counts(steps), counts)
    assert torch.equal(information_flow(steps), counts > 0)
    assert has_full_information(steps) == bool((counts > 0).all())


def test_the_fewest_steps_of_a_chain_are_its_length() -> None:
    chain = torch.eye(6, dtype=torch.bool) | torch.eye(6, dtype=torch.bool).roll(1, 0)
    assert fewest_steps([chain]) == 5
    assert fewest_steps([chain], at_most=4) is None
    assert fewest_steps([torch.eye(3, dtype=torch.bool)]) is None
    assert fewest_steps([torch.ones(3, 3, dtype=torch.bool)]) == 1


# Sparse patterns


@pytest.mark.parametrize("pattern", ["ltr", "rtl"])
@pytest.mark.parametrize("n", [*range(2, 20), 30, 63, 65, 99, 101, 168, 300])
def test_information_is_full_on_sequences(pattern: str, n: int) -> None:
    assert has_full_information(steps_of(pattern, n))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["ltr", "rtl"])
def test_information_is_full_on_sequences_of_2_to_300(pattern: str) -> None:
    assert all(has_full_information(steps_of(pattern, n)) for n in range(2, 301))


@pytest.mark.parametrize("pattern", ["ltr", "rtl"])
def test_information_is_full_on_every_grid_up_to_12(pattern: str) -> None:
    for height, width in itertools.product(range(2, 13), range(2, 13)):
        assert has_full_information(steps_of(pattern, height, width, order="esa"))


@pytest.mark.parametrize("pattern", ["ltr", "rtl"])
def test_the_released_patterns_have_a_hole_where_runs_do_not_divide(pattern: str) -> None:
    assert has_full_information(steps_of(pattern, 16, mend=False))
    assert not has_full_information(steps_of(pattern, 18, mend=False))
    flow = information_flow(steps_of(pattern, 18, mend=False))
    assert not flow[:16, 16:].any()  # nobody else hears of the run of two at the end


@pytest.mark.parametrize(
    ("pattern", "shares"),
    [("strided", (0.906, 0.931, 0.945, 0.971)), ("fixed", (0.53, 0.51, 0.508, 0.502))],
)
def test_the_patterns_of_sparse_transformers_leave_some_out(
    pattern: str, shares: tuple[float, ...]
) -> None:
    for n, expected in zip((16, 36, 64, 256), shares):
        assert share(steps_of(pattern, n)) == pytest.approx(expected, abs=0.005)


def test_the_order_of_the_steps_matters() -> None:
    for n, expected in ((16, 0.39), (36, 0.26), (64, 0.19), (256, 0.095)):
        assert share(steps_of("ltr", n)[::-1]) == pytest.approx(expected, abs=0.005)


def test_multi_axis_attention_needs_two_steps() -> None:
    masks = list(MultiAxis().mask(ndgpa.Image((8, 8), 4)))
    assert fewest_steps(masks) == 2
    assert (path_counts(masks) == 1).all()


def test_dilated_windows_cross_a_grid_in_fewer_steps() -> None:
    windows = [Neighborhood(3, d).mask(ndgpa.Grid(27, 1))[0] for d in (1, 3, 9)]
    assert fewest_steps(windows[:1]) == 25  # two sites a step at the borders, else one
    assert fewest_steps(windows) == 5


def test_gpa_says_what_it_selected() -> None:
    """Every block kept is one step; fewer leave some keys unread by some cells."""
    grid = ndgpa.Image((8, 8), 2)
    query, key = torch.randn(2, 1, 2, 64, 4)
    mask = ndgpa.GPA(3).mask(grid, query=query, key=key)
    assert mask.shape == (2, 64, 64)
    assert (mask.sum(dim=2) == 12).all()
    assert fewest_steps([ndgpa.GPA(16).mask(grid, query=query, key=key)[0]]) == 1
    steps = fewest_steps([mask.any(dim=0)], at_most=8)
    assert steps is None or steps >= 2


# Pictures


def test_pictures_are_written(tmp_path: Path) -> None:
    steps = steps_of("ltr", 16)
    picture_of_masks(torch.stack(steps)).savefig(tmp_path / "masks.png")
    plot_flow(steps, source=9).savefig(tmp_path / "flow.png")
    assert (tmp_path / "masks.png").stat().st_size > 2000
    assert (tmp_path / "flow.png").stat().st_size > 2000
    assert plot_flow(steps, 9).axes[0].get_title() == "input 9 reaches 16 of 16"


@pytest.mark.bad_input
def test_steps_that_do_not_fit_are_refused() -> None:
    a, b = torch.ones(3, 4, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="step 1 has 5 keys but the step before has 3 queries"):
        information_flow([a, b])
    with pytest.raises(ValueError, match="steps is empty"):
        fewest_steps([])
    with pytest.raises(TypeError, match="step 0 must be a bool tensor"):
        path_counts([a.float()])
    x = torch.zeros(1, 1, 16, 2)
    with pytest.raises(
        ValueError, match="the mask of GPA depends on the features; pass query and key"
    ):
        ndgpa.GPA(1).mask(ndgpa.Grid(16, 2), query=x)
