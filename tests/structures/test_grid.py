"""Grids: the contract, and what only a grid has."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.structures.base import SpatialStructure
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import grid_blocks, rows


class TestGrid(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return draw.grids()

    @staticmethod
    def coarse_time(structure: SpatialStructure, latest: list[int]) -> list[int]:
        """A coarse grid counts its own steps; they are in the order of the latest times."""
        order = {time: step for step, time in enumerate(sorted(set(latest)))}
        return [order[time] for time in latest]


@given(draw.grids())
def test_blocks_are_boxes_in_raster_order(grid: ndgpa.Grid) -> None:
    assert [sorted(row) for row in rows(grid.blocks)] == grid_blocks(grid.shape, grid.block_shape)


@given(draw.grids())
def test_cells_are_boxes_of_blocks(grid: ndgpa.Grid) -> None:
    expected = grid_blocks(grid.grid_of_blocks, grid.cell_shape)
    assert [sorted(row) for row in rows(grid.cells)] == expected


@given(draw.grids(), st.integers(0, 4))
def test_near_blocks_are_those_within_the_radius_of_a_block_of_the_cell(
    grid: ndgpa.Grid, radius: int
) -> None:
    """Each once; the last cell of an axis may be shorter than the others."""
    place = [np.unravel_index(block, grid.grid_of_blocks) for block in range(grid.num_blocks)]

    def distance(one: int, other: int) -> int:
        return max(abs(int(a) - int(b)) for a, b in zip(place[one], place[other]))

    for near, cell in zip(rows(grid.near_cells(radius)), rows(grid.cells)):
        every = range(grid.num_blocks)
        assert sorted(near) == [b for b in every if min(distance(b, own) for own in cell) <= radius]


def test_near_blocks_of_a_short_last_cell_by_hand() -> None:
    near = ndgpa.Grid(5, 1, 3).near_cells(1)
    assert near.tolist() == [[0, 1, 2, 3, -1], [2, 3, 4, -1, -1]]


@given(draw.grids(time=True), st.integers(1, 3))
def test_a_block_of_blocks_lasts_as_long_as_a_whole_one(grid: ndgpa.Grid, factor: int) -> None:
    """Its times are those it would have in a grid that goes on until its last block is whole."""
    coarse = grid.coarsen(factor)
    axis = grid.time_axis
    assert axis is not None
    whole = grid.block_shape[axis] * coarse.block_shape[axis]
    shape = list(grid.shape)
    shape[axis] += -shape[axis] % whole
    longer = ndgpa.Grid(tuple(shape), grid.block_shape, time_axis=axis)
    assert longer.time is not None
    blocks = rows(longer.blocks)
    times = [
        [int(longer.time[site]) for block in members for site in blocks[block]]
        for members in rows(longer.coarsen(coarse.block_shape).blocks)
    ]
    first, last = coarse.span_of_blocks(*grid.block_span)
    assert first.tolist() == [min(x) for x in times]
    assert last.tolist() == [max(x) for x in times]


def test_spans_of_blocks_of_blocks_by_hand() -> None:
    sequence = ndgpa.Sequence(11, 2)
    first, last = sequence.coarsen(4).span_of_blocks(*sequence.block_span)
    assert (first.tolist(), last.tolist()) == ([0, 8], [7, 15])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_downsampling_is_average_pooling(rank: int) -> None:
    shape = (8, 4, 6)[:rank]
    grid = ndgpa.Grid(shape, 2)
    x = torch.randn(2, 1, math.prod(shape), 5)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    pooled = pool(x[:, 0].mT.unflatten(-1, shape), 2)
    torch.testing.assert_close(grid.downsample(x)[:, 0], pooled.flatten(2).mT)


def test_a_border_that_does_not_divide_by_hand() -> None:
    grid = ndgpa.Grid((3, 5), block=2, cell=2)
    assert rows(grid.blocks) == [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]
    assert rows(grid.cells) == [[0, 1, 3, 4], [2, 5]]
    assert grid.grid_of_blocks == (2, 3)
    assert grid.grid_of_cells == (1, 2)
    assert not grid.is_even


def test_the_pivot_of_the_paper() -> None:
    image = ndgpa.Image((256, 256), block=4, cell=2)
    assert (image.num_blocks, image.num_cells) == (64 * 64, 32 * 32)
    assert (image.sites_per_block, image.blocks_per_cell) == (16, 4)
    assert image.is_even


def test_upsampled_sites_have_the_coordinates_of_definition_2() -> None:
    image = ndgpa.Image((6, 9), block=3)
    sites = image.upsample(torch.tensor([4])).tolist()[0]
    coordinates = {tuple(int(c) for c in np.unravel_index(s, (6, 9))) for s in sites}
    assert coordinates == {(3 + i, 3 + j) for i in range(3) for j in range(3)}


def test_a_sequence_counts_its_sites_and_a_video_its_frames() -> None:
    assert ndgpa.Sequence(5, 2).time.tolist() == [0, 1, 2, 3, 4]
    assert ndgpa.Video((2, 1, 3), (1, 1, 2)).time.tolist() == [0, 0, 0, 1, 1, 1]
    assert ndgpa.Image((2, 2), 1).time is None


def test_coarsening_goes_on_from_the_grid_of_blocks() -> None:
    coarse = ndgpa.Image((10, 7), block=2).coarsen(2, cell=2)
    assert coarse == ndgpa.Grid((5, 4), block=2, cell=2)


def test_equal_grids_are_equal_and_hash_alike() -> None:
    one, other = ndgpa.Image((4, 4), 2), ndgpa.Image((4, 4), (2, 2))
    assert one == other
    assert hash(one) == hash(other)
