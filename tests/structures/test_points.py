"""Point clouds: the contract, exact sizes, compact blocks."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.structures.base import SpatialStructure
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import rows


@st.composite
def clouds(draw_: Any) -> tuple[torch.Tensor, int, int]:
    points, dimensions = draw_(st.integers(1, 60)), draw_(st.integers(1, 4))
    position = torch.randn(points, dimensions, generator=draw.seeded(draw_(st.integers(0, 2**20))))
    if draw_(st.booleans()):
        position = position.round()  # points that coincide
    block = draw_(st.integers(1, min(points, 7)))
    return position, block, draw_(st.integers(1, -(-points // block)))


class TestPointCloud(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return clouds().map(lambda cloud: ndgpa.PointCloud(*cloud))


@given(clouds())
def test_all_blocks_but_the_last_are_full(cloud: tuple[torch.Tensor, int, int]) -> None:
    structure = ndgpa.PointCloud(*cloud)
    points, block, cell = len(cloud[0]), *cloud[1:]
    sizes = structure.block_sizes.tolist()
    assert sizes == [block] * (points // block) + [points % block] * (points % block > 0)
    assert [len(row) for row in rows(structure.cells)][:-1] == [cell] * (structure.num_cells - 1)


def test_a_line_is_cut_in_order() -> None:
    structure = ndgpa.PointCloud(torch.tensor([[5.0], [1.0], [4.0], [0.0], [3.0], [2.0]]), 2)
    assert rows(structure.blocks) == [[1, 3], [4, 5], [0, 2]]


def test_the_widest_axis_is_cut_first() -> None:
    position = torch.tensor([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]])
    assert rows(ndgpa.PointCloud(position, 2).blocks) == [[0, 2], [1, 3]]


def test_blocks_are_as_compact_as_a_grid_of_their_size() -> None:
    position = torch.rand(4096, 2)
    structure = ndgpa.PointCloud(position, 16)
    corners = position[structure.blocks]
    extent = (corners.amax(dim=1) - corners.amin(dim=1)).mean()
    assert extent < 1.1 * (16 / 4096) ** 0.5


def test_the_same_points_make_the_same_structure() -> None:
    position = torch.rand(500, 3)
    one, other = (ndgpa.PointCloud(position, 7, 3) for _ in range(2))
    assert torch.equal(one.blocks, other.blocks)
    assert torch.equal(one.cells, other.cells)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(4), 2), ValueError, r"position must have shape \(points, dimensions\); got"),
        ((torch.zeros(0, 2), 1), ValueError, "position is empty; a structure needs at least one"),
        (
            (torch.zeros(4, 2).long(), 1),
            TypeError,
            "position must have a floating-point dtype; got",
        ),
        ((torch.tensor([[0.0], [torch.nan]]), 1), ValueError, "position has NaN or infinite"),
        ((torch.zeros(4, 2), 5), ValueError, "block 5 is larger than the number of sites, 4"),
        ((torch.zeros(4, 2), 2, 3), ValueError, "cell 3 is larger than the number of blocks, 2"),
        ((torch.zeros(4, 2), 0), ValueError, "block must be at least 1; got 0"),
        (([[0.0]], 1), TypeError, "position must be a tensor; got list"),
    ],
)
def test_points_that_are_none_are_refused(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ndgpa.PointCloud(*arguments)
