"""Sizes and tables that make no space are refused, in one sentence."""

from typing import Any

import pytest
import torch

import ndgpa

pytestmark = pytest.mark.bad_input

SPACES: list[tuple[Any, type[Exception], str]] = [
    (lambda: ndgpa.Grid((), 1), ValueError, "shape has no axes; a grid needs at least one"),
    (lambda: ndgpa.Grid((4, 0), 1), ValueError, "shape .4, 0. has an empty axis"),
    (lambda: ndgpa.Image((4, 4), 0), ValueError, "block must be at least 1; got 0 for axis 0"),
    (
        lambda: ndgpa.Image((4, 4), (2, 5)),
        ValueError,
        "block 5 is larger than axis 1, which has 4 sites",
    ),
    (lambda: ndgpa.Image((4, 4), 2, -1), ValueError, "cell must be at least 1; got -1 for axis 0"),
    (
        lambda: ndgpa.Image((8, 4), 2, 3),
        ValueError,
        "cell 3 is larger than axis 1, which has 2 blocks",
    ),
    (
        lambda: ndgpa.Video((4, 4, 4), (2, 2)),
        ValueError,
        "block has 2 entries but the grid has 3 axes",
    ),
    (
        lambda: ndgpa.Image((4, 4, 4), 2),
        ValueError,
        r"Image expects a shape \(height, width\); got \(4, 4, 4\)",
    ),
    (
        lambda: ndgpa.Grid((4,), 2, time_axis=1),
        ValueError,
        "time_axis 1 is not an axis of a grid of rank 1",
    ),
    (
        lambda: ndgpa.Image((4.0, 4), 2),
        TypeError,
        r"shape must be an int or a tuple of ints; got \(4.0, 4\)",
    ),
    (lambda: ndgpa.Sequence(4, True), TypeError, "block must be an int or a tuple of ints"),
    (
        lambda: ndgpa.Image((8, 8), 2.0),
        TypeError,
        r"block must be an int or a tuple of ints; got 2\.0",
    ),
    (
        lambda: ndgpa.Sequence((100,), 4),
        TypeError,
        r"length of a Sequence must be an int; got \(100,\): for several axes, use Grid",
    ),
    (lambda: ndgpa.Sequence(0, 1), ValueError, r"shape \(0,\) has an empty axis"),
    (lambda: ndgpa.Grid(8.0, 2), TypeError, r"shape must be an int or a tuple of ints; got 8\.0"),
    (
        lambda: ndgpa.Clusters(torch.arange(4), torch.arange(4)).coarsen([2, 2]),
        ValueError,
        r"factor must be one int of at least 1 for a structure that is not a Grid; got \[2, 2\]",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([]).long(), torch.tensor([0])),
        ValueError,
        "block_of_site is empty; a structure needs at least one site",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 2]), torch.tensor([0, 0, 0])),
        ValueError,
        "block_of_site must use the numbers 0, 1, 2, ... without gaps",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0])),
        ValueError,
        "cell_of_block has 1 entries but block_of_site names 2 blocks",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0.0, 1.0]), torch.tensor([0, 0])),
        TypeError,
        "block_of_site must have an integer dtype; got torch.float32",
    ),
    (
        lambda: ndgpa.Clusters([0, 1], torch.tensor([0, 0])),
        TypeError,
        "block_of_site must be a tensor; got list",
    ),
    (
        lambda: ndgpa.Clusters(torch.zeros(1, 2).long(), torch.tensor([0])),
        ValueError,
        r"block_of_site must have one axis; got shape \(1, 2\)",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1])),
        ValueError,
        "time has 1 entries but there are 2 sites",
    ),
    (
        lambda: ndgpa.Clusters(
            torch.tensor([0, 1]), torch.tensor([0, 0]), group=torch.tensor([0, 1])
        ),
        ValueError,
        "a cell has blocks of different groups; it must lie within one group",
    ),
    (
        lambda: ndgpa.Clusters(
            torch.tensor([0, 1]), torch.tensor([0, 0]), torch.zeros(2, dtype=torch.int64).to("meta")
        ),
        ValueError,
        "time and group must be on one device; got cpu, cpu, meta",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0, 0])).coarsen(0),
        ValueError,
        "factor must be one int of at least 1 for a structure that is not a Grid; got 0",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), SPACES)
def test_what_is_no_space_is_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()
