"""Graphs: the contract, exact sizes, few edges cut, every odd graph."""

import builtins
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.structures import graph_partition
from ndgpa.structures.base import SpatialStructure
from ndgpa.testing import StructureContract, draw
from ndgpa.testing.oracle import rows

METHODS = ("metis", "landmark")


@st.composite
def graphs(draw_: Any) -> dict[str, Any]:
    """Directed, disconnected, with isolated nodes, self loops and edges given twice."""
    nodes, edges = draw_(st.integers(1, 60)), draw_(st.integers(0, 150))
    generator = draw.seeded(draw_(st.integers(0, 2**20)))
    named = draw_(st.integers(1, nodes))  # the others have no edges
    weight = None
    if draw_(st.booleans()):
        weight = torch.rand(edges, generator=generator).round(decimals=1)
    block = draw_(st.integers(1, min(nodes, 7)))
    return {
        "edge_index": torch.randint(0, named, (2, edges), generator=generator),
        "num_nodes": nodes,
        "block": block,
        "cell": draw_(st.integers(1, -(-nodes // block))),
        "edge_weight": weight,
        "method": draw_(st.sampled_from(METHODS)),
        "time": torch.arange(nodes) if draw_(st.booleans()) else None,
    }


def lattice(*shape: int) -> Tensor:
    """The edges of a grid between neighbours along each axis, from coordinates alone."""
    sites = torch.arange(int(np.prod(shape))).view(shape)
    pairs = []
    for axis, size in enumerate(shape):
        near, far = sites.narrow(axis, 0, size - 1), sites.narrow(axis, 1, size - 1)
        pairs.append(torch.stack([near.flatten(), far.flatten()]))
    return torch.cat(pairs, dim=1)


def cut(structure: ndgpa.SpatialStructure, edges: Tensor) -> float:
    """The share of edges between blocks, by a loop."""
    block = structure.block_of_site.tolist()
    pairs = edges.T.tolist()
    return sum(block[a] != block[b] for a, b in pairs) / len(pairs)


class TestGraph(StructureContract):
    @staticmethod
    def structures() -> st.SearchStrategy[SpatialStructure]:
        return graphs().map(lambda graph: ndgpa.Graph(**graph))


@given(graphs())
def test_all_blocks_and_cells_but_the_last_are_full(graph: dict[str, Any]) -> None:
    structure = ndgpa.Graph(**graph)
    nodes, block, cell = graph["num_nodes"], graph["block"], graph["cell"]
    whole, rest = divmod(nodes, block)
    assert structure.block_sizes.tolist() == [block] * whole + [rest] * (rest > 0)
    assert [len(row) for row in rows(structure.cells)][:-1] == [cell] * (structure.num_cells - 1)


@given(graphs())
def test_the_same_graph_makes_the_same_structure(graph: dict[str, Any]) -> None:
    one, other = ndgpa.Graph(**graph), ndgpa.Graph(**graph)
    assert torch.equal(one.blocks, other.blocks)
    assert torch.equal(one.cells, other.cells)


@given(graphs(), st.integers(0, 2**20))
def test_order_direction_copies_and_loops_of_edges_do_not_matter(
    graph: dict[str, Any], seed: int
) -> None:
    graph["edge_weight"] = None
    edges = graph["edge_index"]
    generator = draw.seeded(seed)
    turned = torch.where(
        torch.rand(edges.shape[1], generator=generator) < 0.5, edges, edges.flip(0)
    )
    loops = torch.randint(0, graph["num_nodes"], (1, 3), generator=generator).expand(2, -1)
    more = torch.cat([edges, turned, loops], dim=1)
    more = more[:, torch.randperm(more.shape[1], generator=generator)]
    same = ndgpa.Graph(**{**graph, "edge_index": more})
    assert torch.equal(same.blocks, ndgpa.Graph(**graph).blocks)


@given(st.integers(0, 2**20))
def test_copies_of_a_weighted_edge_add_up(seed: int) -> None:
    generator = draw.seeded(seed)
    edges = torch.randint(0, 40, (2, 90), generator=generator)
    weight = torch.randint(1, 9, (90,), generator=generator)
    copies = edges.repeat_interleave(weight, dim=1)
    one = ndgpa.Graph(edges, 40, 5, 2, edge_weight=weight)
    other = ndgpa.Graph(copies, 40, 5, 2, edge_weight=torch.ones(copies.shape[1]))
    assert torch.equal(one.blocks, other.blocks)


@pytest.mark.parametrize(("method", "as_much"), [("metis", 1.25), ("landmark", 1.45)])
def test_a_grid_is_cut_into_blocks_nearly_as_compact_as_squares(
    method: str, as_much: float
) -> None:
    edges = lattice(32, 32)
    squares = cut(ndgpa.Image((32, 32), 4), edges)
    assert cut(ndgpa.Graph(edges, 1024, 16, 4, method=method), edges) < as_much * squares


@pytest.mark.parametrize("method", METHODS)
def test_separate_pieces_of_the_size_of_a_block_become_the_blocks(method: str) -> None:
    """Rings of 8 nodes, numbered at random: no edge need be cut, and none is."""
    ring = torch.arange(40).view(5, 8)
    number = torch.randperm(40, generator=draw.seeded(1))
    edges = number[torch.stack([ring, ring.roll(1, dims=1)]).flatten(1)]
    structure = ndgpa.Graph(edges, 40, 8, method=method)
    assert cut(structure, edges) == 0
    assert sorted(rows(structure.blocks)) == sorted(sorted(r.tolist()) for r in number[ring])


def test_heavy_edges_are_kept() -> None:
    """A ring in which every other edge is heavy, blocks of two: the heavy ones."""
    ring = torch.arange(24)
    weight = torch.where(ring % 2 == 0, 9.0, 0.5)
    structure = ndgpa.Graph(torch.stack([ring, (ring + 1) % 24]), 24, 2, edge_weight=weight)
    assert sorted(rows(structure.blocks)) == [[i, i + 1] for i in range(0, 24, 2)]


def test_an_edge_of_weight_zero_is_none() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    weight = torch.tensor([0.0, 1.0, 0.0])
    structure = ndgpa.Graph(edges, 4, 2, edge_weight=weight)
    assert [1, 2] in rows(structure.blocks)


def test_positions_are_split_as_points_are() -> None:
    position = torch.rand(100, 3, generator=draw.seeded(0))
    edges = torch.randint(0, 100, (2, 300), generator=draw.seeded(1))
    of_graph = ndgpa.Graph(edges, 100, 6, 2, position=position)
    of_points = ndgpa.PointCloud(position, 6, 2)
    assert torch.equal(of_graph.blocks, of_points.blocks)
    assert torch.equal(of_graph.cells, of_points.cells)


def test_positions_do_not_matter_to_metis() -> None:
    edges = lattice(10, 10)
    position = torch.rand(100, 2, generator=draw.seeded(0))
    with_them = ndgpa.Graph(edges, 100, 5, position=position, method="metis")
    assert torch.equal(with_them.blocks, ndgpa.Graph(edges, 100, 5, method="metis").blocks)


@pytest.mark.parametrize("kind", ["lattice", "star", "expander", "dust"])
@pytest.mark.parametrize(("block", "cell"), [(32, 8), (7, 3), (1, 1), (1, 50), (500, 1)])
def test_padding_is_that_of_the_last_block(kind: str, block: int, cell: int) -> None:
    nodes = 5000
    edges = {
        "lattice": lattice(50, 100),
        "star": torch.stack([torch.zeros(nodes, dtype=torch.int64), torch.arange(nodes)]),
        "expander": torch.randint(0, nodes, (2, 3 * nodes), generator=draw.seeded(0)),
        "dust": torch.empty(2, 0, dtype=torch.int64),
    }[kind]
    structure = ndgpa.Graph(edges, nodes, block, cell)
    assert structure.num_blocks == -(-nodes // block)
    assert structure.sites_per_block == block
    assert structure.num_cells == -(-structure.num_blocks // cell)
    assert structure.blocks_per_cell == cell


def test_parts_that_are_too_full_give_their_loosest_nodes() -> None:
    """A path 0-1-2-3-4-5 with 4 nodes in the first part of 3: node 3, next to the second, goes."""
    edges = graph_partition.undirected(np.arange(5), np.arange(1, 6), 6)
    one = np.zeros(6, dtype=np.int64)
    found = graph_partition._fit(
        edges, one, np.array([0, 0, 0, 0, 1, 1]), np.array([3, 3]), np.array([0])
    )
    assert found.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_pymetis_one_warning_and_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = lattice(8, 8)
    expected = ndgpa.Graph(edges, 64, 4, 2, method="landmark")
    _hide(monkeypatch, "pymetis")
    with pytest.warns(UserWarning, match="pymetis is not installed") as caught:
        structure = ndgpa.Graph(edges, 64, 4, 2)
    assert len(caught) == 1
    assert torch.equal(structure.blocks, expected.blocks)


@pytest.mark.parametrize(
    ("hidden", "method", "words"),
    [
        (("pymetis",), "metis", "Graph needs pymetis for method 'metis'; install it with: pip"),
        (("scipy",), "landmark", "Graph needs scipy for method 'landmark'; install it with: pip"),
        (
            ("pymetis", "scipy"),
            "auto",
            "Graph needs pymetis for method 'metis'; install it with: pip",
        ),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...], method: str, words: str
) -> None:
    _hide(monkeypatch, *hidden)
    with pytest.raises(ImportError, match=words):
        ndgpa.Graph(lattice(4, 4), 16, 4, method=method)


def _hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find, load = importlib.util.find_spec, builtins.__import__

    def no_spec(name: str, *rest: Any) -> Any:
        return None if name in names else find(name, *rest)

    def no_import(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(name)
        return load(name, *rest, **more)

    monkeypatch.setattr("ndgpa.structures.graph.find_spec", no_spec)
    monkeypatch.setattr(builtins, "__import__", no_import)


# A grid given as a graph, and graphs renumbered


@given(draw.grids(), st.integers(0, 2**20))
def test_a_grid_given_by_its_own_blocks_and_cells_gives_the_grid_s_output(
    grid: ndgpa.Grid, seed: int
) -> None:
    clusters = ndgpa.Clusters(grid.block_of_site, grid.cell_of_block)
    inputs = _features(grid.num_sites, seed)
    selections = [ndgpa.select(*inputs[:2], s, 3) for s in (grid, clusters)]
    assert torch.equal(selections[0].blocks, selections[1].blocks)
    torch.testing.assert_close(
        ndgpa.gpa(*inputs, clusters, 3), ndgpa.gpa(*inputs, grid, 3), rtol=1e-13, atol=1e-13
    )


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**20))
def test_a_sequence_given_by_its_own_blocks_and_cells_is_the_same_to_the_bit(
    length: int, block: int, cell: int, seed: int
) -> None:
    """Here the rows of both tables are in one order, so sums are too."""
    block = min(block, length)
    grid = ndgpa.Sequence(length, block, min(cell, -(-length // block)))
    clusters = ndgpa.Clusters(grid.block_of_site, grid.cell_of_block)
    inputs = _features(length, seed)
    assert torch.equal(ndgpa.gpa(*inputs, clusters, 3), ndgpa.gpa(*inputs, grid, 3))


@given(graphs(), st.integers(0, 2**20))
def test_renumbering_the_nodes_renumbers_the_output(graph: dict[str, Any], seed: int) -> None:
    structure = ndgpa.Graph(**graph)
    old = torch.randperm(structure.num_sites, generator=draw.seeded(seed))  # new place -> old
    renumbered = ndgpa.Clusters(structure.block_of_site[old], structure.cell_of_block)
    inputs = _features(structure.num_sites, seed)
    moved = [x[:, :, old] for x in inputs]
    torch.testing.assert_close(
        ndgpa.gpa(*moved, renumbered, 3),
        ndgpa.gpa(*inputs, structure, 3)[:, :, old],
        rtol=1e-12,
        atol=1e-12,
    )


def test_coarse_levels_stay_compact() -> None:
    """Blocks of a lattice, coarsened by 4: fewer edges are cut than between the blocks."""
    edges = lattice(32, 32)
    fine = ndgpa.Graph(edges, 1024, 4, 4)
    coarse = fine.coarsen(4, 4)
    assert coarse.num_sites == fine.num_blocks
    assert coarse.num_cells == 16
    both = ndgpa.Clusters(coarse.block_of_site[fine.block_of_site], coarse.cell_of_block)
    assert cut(both, edges) < 1.35 * cut(ndgpa.Image((32, 32), 4), edges)


def _features(sites: int, seed: int) -> list[Tensor]:
    generator = draw.seeded(seed)
    return [torch.randn(2, 2, sites, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


# Bad input

PATH = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"edge_index": PATH.float()}, TypeError, "edge_index must have an integer dtype; got"),
        ({"edge_index": PATH.bool()}, TypeError, "edge_index must have an integer dtype; got"),
        ({"edge_index": PATH.T}, ValueError, r"edge_index must have shape \(2, edges\); got \(3,"),
        ({"edge_index": PATH[0]}, ValueError, r"edge_index must have shape \(2, edges\); got"),
        ({"edge_index": [[0], [1]]}, TypeError, "edge_index must be a tensor; got list"),
        ({"edge_index": PATH + 1}, ValueError, "edge_index names node 4; nodes are numbered from"),
        ({"edge_index": PATH - 1}, ValueError, "edge_index names node -1; nodes are numbered from"),
        ({"num_nodes": 0}, ValueError, "num_nodes is 0; a structure needs at least one site"),
        ({"num_nodes": 4.0}, TypeError, "num_nodes must be an int; got 4.0"),
        ({"block": 5}, ValueError, "block 5 is larger than the number of sites, 4"),
        ({"block": 0}, ValueError, "block must be at least 1; got 0"),
        ({"cell": 3}, ValueError, "cell 3 is larger than the number of blocks, 2"),
        ({"method": "kd"}, ValueError, "method 'kd' needs positions, and none are given"),
        ({"method": "louvain"}, ValueError, "unknown method 'louvain'; expected one of 'auto'"),
        ({"position": torch.zeros(3, 2)}, ValueError, "position has 3 rows but there are 4 nodes"),
        (
            {"position": torch.full((4, 2), torch.nan)},
            ValueError,
            "position has NaN or infinite coordinates",
        ),
        ({"edge_weight": torch.ones(2)}, ValueError, r"edge_weight must have shape \(3,\); got"),
        ({"edge_weight": -torch.ones(3)}, ValueError, "edge_weight must be finite and not neg"),
        ({"edge_weight": torch.full((3,), torch.nan)}, ValueError, "edge_weight must be finite"),
        ({"edge_weight": PATH[0] > 0}, TypeError, "edge_weight must have a real dtype; got"),
        ({"time": torch.arange(3)}, ValueError, "time has 3 entries but there are 4 sites"),
    ],
)
def test_graphs_that_are_none_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    good = {"edge_index": PATH, "num_nodes": 4, "block": 2}
    with pytest.raises(error, match=words):
        ndgpa.Graph(**{**good, **arguments})
