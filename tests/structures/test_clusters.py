"""Partitions given as two vectors: the contract, and what only they have."""

import copy
import pickle

import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.structures.base import SpatialStructure
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import rows


class TestClusters(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return draw.clusters()


@given(draw.clusters())
def test_tables_list_the_members_in_ascending_order(clusters: ndgpa.Clusters) -> None:
    blocks = clusters.block_of_site.tolist()
    for block, sites in enumerate(rows(clusters.blocks)):
        assert sites == [site for site, b in enumerate(blocks) if b == block]


def test_tables_by_hand() -> None:
    clusters = ndgpa.Clusters(torch.tensor([1, 0, 1, 2, 1]), torch.tensor([0, 1, 0]))
    assert clusters.blocks.tolist() == [[1, -1, -1], [0, 2, 4], [3, -1, -1]]
    assert clusters.cells.tolist() == [[0, 2], [1, -1]]
    assert repr(clusters) == ("Clusters(5 sites, 3 blocks of at most 3, 2 cells of at most 2)")


@given(draw.clusters(time=True))
def test_spans_are_the_earliest_and_latest_times(clusters: ndgpa.Clusters) -> None:
    """Of times of either sign, in blocks and cells of several sizes."""
    assert clusters.time is not None
    times = clusters.time.tolist()
    blocks = [[times[site] for site in sites] for sites in rows(clusters.blocks)]
    cells = [[time for b in members for time in blocks[b]] for members in rows(clusters.cells)]
    for span, members in ((clusters.block_span, blocks), (clusters.cell_span, cells)):
        assert [x.tolist() for x in span] == [[min(x) for x in members], [max(x) for x in members]]


def test_spans_of_negative_times_by_hand() -> None:
    clusters = ndgpa.Clusters(
        torch.tensor([0, 0, 1]), torch.tensor([0, 1]), torch.tensor([-5, -3, -4])
    )
    assert [x.tolist() for x in clusters.block_span] == [[-5, -4], [-3, -4]]


@given(draw.grids())
def test_a_grid_given_as_clusters_is_the_same_partition(grid: ndgpa.Grid) -> None:
    cell_of_block = torch.empty(grid.num_blocks, dtype=torch.int64)
    for cell, blocks in enumerate(rows(grid.cells)):
        cell_of_block[blocks] = cell
    clusters = ndgpa.Clusters(grid.block_of_site, cell_of_block)
    assert rows(clusters.blocks) == [sorted(row) for row in rows(grid.blocks)]
    assert rows(clusters.cells) == [sorted(row) for row in rows(grid.cells)]


@given(draw.clusters(group=True), st.integers(1, 4), st.integers(1, 3))
def test_coarse_blocks_are_runs_that_stay_within_a_group(
    clusters: ndgpa.Clusters, factor: int, cell: int
) -> None:
    coarse = clusters.coarsen(factor, cell)
    assert clusters.group is not None
    assert coarse.group is not None
    for number, sites in enumerate(rows(coarse.blocks)):
        assert len(sites) <= factor
        assert set(clusters.group[sites].tolist()) == {int(coarse.group[number])}
    assert coarse.blocks_per_cell <= cell


def test_a_copy_without_values_leads_back_to_the_one_with_values() -> None:
    clusters = ndgpa.Clusters(torch.tensor([0, 0, 1]), torch.tensor([0, 0]))
    meta = clusters.to("meta")
    assert meta.to("cpu") is clusters
    again = copy.deepcopy(meta)
    assert again.to("cpu").blocks.tolist() == [[0, 1], [2, -1]]
    assert meta.coarsened(2).to("cpu").blocks.tolist() == [[0, 1]]


def test_what_is_pickled_has_no_copies_on_other_devices() -> None:
    clusters = ndgpa.Clusters(torch.tensor([0, 0, 1]), torch.tensor([0, 0]))
    alone = len(pickle.dumps(clusters))
    clusters.to("meta")
    assert len(pickle.dumps(clusters)) == alone
    assert pickle.loads(pickle.dumps(clusters)).to("meta").is_even == clusters.is_even
