"""PyTorch Geometric: tables survive batching, loading and storing; the layer beside GPSConv."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import ndgpa
from ndgpa.testing.draw import seeded
from ndgpa.testing.oracle import rows

pytest.importorskip("torch_geometric")

from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, GPSConv

from ndgpa.integrations.pyg import GPACoarsening, GPAConv, structure_of, structure_of_edges

SIZES = (30, 50, 17, 1, 4)


def graph(nodes: int, seed: int = 0, channels: int = 8) -> Data:
    generator = seeded(seed)
    edges = torch.randint(0, nodes, (2, 3 * nodes), generator=generator)
    return Data(torch.randn(nodes, channels, generator=generator), edges)


def graphs() -> list[Data]:
    return [graph(size, seed) for seed, size in enumerate(SIZES)]


def same(one: ndgpa.SpatialStructure, other: ndgpa.SpatialStructure) -> None:
    for name in ("blocks", "cells", "group"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs), name


def one_by_one(data: list[Data]) -> list[ndgpa.Clusters]:
    """The structures that the tables should amount to, without this module."""
    structures = []
    for d in data:
        block = min(4, d.num_nodes)
        cell = min(3, -(-d.num_nodes // block))
        structures.append(ndgpa.Graph(d.edge_index, d.num_nodes, block, cell))
    return structures


def test_one_graph_has_the_structure_of_its_edges() -> None:
    data = GPACoarsening(4, 3)(graph(30))
    same(structure_of(data), ndgpa.Graph(data.edge_index, 30, 4, 3))


def test_positions_alone_are_a_point_cloud() -> None:
    clouds = [Data(pos=torch.rand(size, 3)) for size in (30, 50, 7)]
    coarsen = GPACoarsening(4, 3)
    same(structure_of(coarsen(clouds[0])), ndgpa.PointCloud(clouds[0].pos, 4, 3))
    batch = Batch.from_data_list([coarsen(cloud) for cloud in clouds])
    whole = [ndgpa.PointCloud(x.pos, 4, cell) for x, cell in zip(clouds, (3, 3, 2))]
    same(structure_of(batch), ndgpa.disjoint(whole))


def test_each_type_of_nodes_is_a_space_through_a_loader() -> None:
    """Papers by two kinds of edges, authors by their positions; attention from one to the other."""
    generator, found = seeded(1), []
    for papers, authors in ((30, 12), (17, 20)):
        data = HeteroData(
            paper={"x": torch.randn(papers, 8)}, author={"pos": torch.rand(authors, 2)}
        )
        for name in ("cites", "extends"):
            edges = torch.randint(0, papers, (2, 2 * papers), generator=generator)
            data["paper", name, "paper"].edge_index = edges
        data["author", "wrote", "paper"].edge_index = torch.tensor([[0, 1], [1, 0]])
        found.append(GPACoarsening(4, 2)(data))
    edges = [
        torch.cat(
            [d["paper", "cites", "paper"].edge_index, d["paper", "extends", "paper"].edge_index], 1
        )
        for d in found
    ]
    papers = ndgpa.disjoint([ndgpa.Graph(e, n, 4, 2) for e, n in zip(edges, (30, 17))])
    authors = ndgpa.disjoint([ndgpa.PointCloud(d["author"].pos, 4, 2) for d in found])
    batch = next(iter(DataLoader(found, batch_size=2)))
    same(structure_of(batch["paper"]), papers)
    same(structure_of(batch["author"]), authors)
    query, key = torch.randn(1, 1, 47, 8), torch.randn(1, 1, 32, 8)
    out = ndgpa.gpa(query, key, key, papers, 9, key_structure=structure_of(batch["author"]))
    first = ndgpa.Full()(
        query[:, :, :30],
        key[:, :, :12],
        key[:, :, :12],
        ndgpa.Sequence(30, 4),
        ndgpa.Sequence(12, 4),
    )
    torch.testing.assert_close(out[:, :, :30], first)


def test_a_transform_leaves_the_graph_that_it_is_given_alone() -> None:
    data = graph(30)
    GPACoarsening(4)(data)
    assert "gpa_block_of_site" not in data


def test_a_batch_has_the_disjoint_structure_of_its_graphs() -> None:
    transform = GPACoarsening(4, 3)
    batch = Batch.from_data_list([transform(d) for d in graphs()])
    same(structure_of(batch), ndgpa.disjoint(one_by_one(graphs())))


def test_a_batch_can_be_taken_apart_and_batched_again() -> None:
    transform = GPACoarsening(4, 3)
    batch = Batch.from_data_list([transform(d) for d in graphs()])
    parts = batch.to_data_list()
    for part, structure in zip(parts, one_by_one(graphs())):
        same(structure_of(part), structure)
    again = Batch.from_data_list([parts[2], parts[0]])
    same(structure_of(again), ndgpa.disjoint([one_by_one(graphs())[i] for i in (2, 0)]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_collates_the_tables(workers: int) -> None:
    transform = GPACoarsening(4, 3)
    loader = DataLoader([transform(d) for d in graphs()], batch_size=2, num_workers=workers)
    structures = one_by_one(graphs())
    for number, batch in enumerate(loader):
        same(structure_of(batch), ndgpa.disjoint(structures[2 * number : 2 * number + 2]))


def test_a_data_set_stores_the_tables(tmp_path: Any) -> None:
    class Stored(InMemoryDataset):
        @property
        def processed_file_names(self) -> str:
            return "data.pt"

        def process(self) -> None:
            self.save([self.pre_transform(d) for d in graphs()], self.processed_paths[0])

    for _ in range(2):  # the second time it is read from the disk
        stored = Stored(str(tmp_path), pre_transform=GPACoarsening(4, 3), log=False)
        stored.load(stored.processed_paths[0])
        for data, structure in zip(stored, one_by_one(graphs())):
            same(structure_of(data), structure)


def test_positions_and_weights_are_used() -> None:
    data = graph(40)
    data.pos = torch.rand(40, 2, generator=seeded(1))
    data.edge_weight = torch.rand(120, generator=seeded(2))
    same(structure_of(GPACoarsening(4, 2)(data)), ndgpa.PointCloud(data.pos, 4, 2))
    weighted = GPACoarsening(4, 2, method="metis", edge_weight="edge_weight")(data)
    expected = ndgpa.Graph(data.edge_index, 40, 4, 2, edge_weight=data.edge_weight)
    same(structure_of(weighted), expected)


def test_a_batch_without_tables_gets_the_same_structure_from_its_edges() -> None:
    batch = Batch.from_data_list(graphs())
    structure = structure_of_edges(batch.edge_index, batch.num_nodes, 4, 3, batch.batch)
    same(structure, ndgpa.disjoint(one_by_one(graphs())))


# The layer


def layer(**options: Any) -> GPAConv:
    torch.manual_seed(0)
    return GPAConv(8, heads=2, conv=GCNConv(8, 8), block=4, cell=3, **options).double()


def coarsened_batch() -> Batch:
    return Batch.from_data_list([GPACoarsening(4, 3)(d) for d in graphs()])


def test_a_graph_does_not_see_the_batch_that_it_is_in() -> None:
    conv, batch = layer(operator=ndgpa.GPA(2)), coarsened_batch()
    x = batch.x.double()
    out = conv(x, batch.edge_index, batch.batch, structure_of(batch))
    first = 0
    for data in graphs():
        alone = conv(x[first : first + data.num_nodes], data.edge_index)
        torch.testing.assert_close(
            out[first : first + data.num_nodes], alone, rtol=1e-12, atol=1e-12
        )
        first += data.num_nodes


def test_without_a_structure_it_makes_the_same_one() -> None:
    conv, batch = layer(), coarsened_batch()
    x = batch.x.double()
    given = conv(x, batch.edge_index, batch.batch, structure_of(batch))
    assert torch.equal(conv(x, batch.edge_index, batch.batch), given)


def test_every_block_kept_is_the_layer_with_full_attention() -> None:
    batch = coarsened_batch()
    x, structure = batch.x.double(), structure_of(batch)
    outs = [
        layer(operator=operator)(x, batch.edge_index, batch.batch, structure)
        for operator in (ndgpa.GPA(99), ndgpa.Full())
    ]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_information_crosses_a_graph_in_one_layer_but_not_to_another() -> None:
    batch = coarsened_batch()
    x = batch.x.double().requires_grad_()
    conv = layer(operator=ndgpa.GPA(99))
    conv(x, batch.edge_index, batch.batch, structure_of(batch))[:30, 0].sum().backward()
    assert (x.grad[:30] != 0).any(dim=1).all()
    assert (x.grad[30:] == 0).all()


def test_it_stands_where_gps_conv_stands() -> None:
    """The same call, on the same batch; every parameter learns."""
    batch = coarsened_batch()
    for conv in (GPSConv(8, GCNConv(8, 8), heads=2), GPAConv(8, 2, GCNConv(8, 8), dropout=0.1)):
        out = conv(batch.x, batch.edge_index, batch.batch)
        assert out.shape == batch.x.shape
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in conv.parameters())


@pytest.mark.parametrize("passes", [True, False], ids=["with messages", "attention alone"])
def test_with_full_attention_it_is_gps_conv(passes: bool) -> None:
    """The same weights, a norm of each node: both residuals, norms and the MLP are theirs."""
    messages = GCNConv(8, 8) if passes else None
    mine = GPAConv(8, 2, messages, ndgpa.Full()).double()
    theirs = GPSConv(8, messages, 2, norm="layer_norm", norm_kwargs={"mode": "node"}).double()
    attention = mine.attention
    for module, state in (
        (
            theirs.attn,
            {
                "in_proj_weight": torch.cat(
                    [x.weight for x in (attention.to_query, attention.to_key, attention.to_value)]
                ),
                "in_proj_bias": torch.zeros(24),
                "out_proj.weight": attention.to_out.weight,
                "out_proj.bias": attention.to_out.bias,
            },
        ),
        (theirs.mlp, mine.mlp.state_dict()),
    ):
        module.load_state_dict(state)
    batch = coarsened_batch()
    x = batch.x.double()
    expected = theirs(x, batch.edge_index, batch.batch)
    out = mine(x, batch.edge_index, batch.batch, structure_of(batch))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_message_passing_gets_the_other_arguments() -> None:
    class Weighted(nn.Module):
        def forward(self, x: Any, edge_index: Any, edge_weight: Any) -> Any:
            return x + edge_weight.mean() * x.roll(1, dims=0)

    conv = GPAConv(8, 2, Weighted(), block=4)
    data = graph(12)
    outs = [
        conv(data.x, data.edge_index, edge_weight=torch.full((36,), weight))
        for weight in (1.0, 2.0)
    ]
    assert not torch.allclose(*outs)


def test_the_package_does_not_import_what_only_graphs_need() -> None:
    code = (
        "import sys, ndgpa, torch; ndgpa.PointCloud(torch.rand(9, 2), 2); "
        "print([m for m in ('torch_geometric', 'scipy', 'pymetis') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_tables_by_hand() -> None:
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    data = [GPACoarsening(2, 1)(Data(torch.zeros(4, 1), path)) for _ in range(2)]
    structure = structure_of(Batch.from_data_list(data))
    assert sorted(rows(structure.blocks)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert structure.group.tolist() == [0, 0, 1, 1]


@pytest.mark.bad_input
def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="this graph has no GPA tables; apply GPACoarsening"):
        structure_of(graph(4))
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        GPACoarsening(0)
    with pytest.raises(ValueError, match="this graph has neither edges between its nodes nor pos"):
        GPACoarsening(2)(Data(x=torch.rand(4, 2)))
    kinds = HeteroData(one={"x": torch.rand(4, 2)}, other={"x": torch.rand(3, 2)})
    kinds["one", "to", "other"].edge_index = torch.tensor([[0, 3], [2, 0]])
    with pytest.raises(ValueError, match="node type 'one' has neither edges between its nodes"):
        GPACoarsening(2)(kinds)
    with pytest.raises(TypeError, match=r"got HeteroData: pass one of them, such as data\['one'\]"):
        structure_of(kinds)
    assert structure_of(GPACoarsening(2)(kinds.to_homogeneous())).num_sites == 7
    with pytest.raises(ValueError, match="query_dim must be a multiple of the 3 heads; got 8"):
        GPAConv(8, 3)
    edges = torch.tensor([[0, 1], [1, 2]])
    for batch, words in (
        (
            torch.tensor([0, 1, 0]),
            "batch must be sorted, so that the nodes of each graph are contiguous",
        ),
        (torch.tensor([0, 0, 1]), "edge_index connects nodes of different graphs in the batch"),
        (torch.tensor([0, 0]), "batch has 2 entries but there are 3 nodes"),
    ):
        with pytest.raises(ValueError, match=words):
            structure_of_edges(edges, 3, 2, batch=batch)
