"""PyTorch Geometric: coarsen graphs once as a transform, batch them, attend over the batch.

    dataset = MyDataset(root, pre_transform=GPACoarsening(block=16, cell=4))
    for batch in DataLoader(dataset, batch_size=32):
        structure = structure_of(batch)
        x = layer(batch.x, batch.edge_index, batch.batch, structure=structure)

`GPAConv` replaces `torch_geometric.nn.GPSConv`. Needs the extra `pyg`, and `graph` for graphs
without positions.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import BaseTransform

from ndgpa import arguments
from ndgpa.nn import SpatialAttention
from ndgpa.operators import GPA, Operator
from ndgpa.structures import Clusters, Graph, SpatialStructure, disjoint
from ndgpa.structures.graph import check_edge_index


class GPACoarsening(BaseTransform):  # type: ignore[misc]
    """Add to each graph the tables of its `ndgpa.Graph`, as a `pre_transform` or a `transform`.

    A graph without edges is cut by its positions, as `ndgpa.PointCloud`. Of a `HeteroData` each
    type of nodes is a space of its own, cut by the edges that join its nodes, or by positions.

    The tables are `gpa_block_of_site` (nodes,), `gpa_cell_of_block` (blocks,), and the counts
    `gpa_num_blocks` and `gpa_num_cells`. Numbers count within the graph, so that the tables stay
    valid however graphs are batched or stored.

    Args:
        block: Nodes in a block; a smaller graph is one block.
        cell: Blocks in a cell; a graph of fewer blocks is one cell.
        method: As for `ndgpa.Graph`.
        position: Name of the attribute that holds positions, used where a graph has it.
        edge_weight: Name of the attribute that holds edge weights; None for no weights.

    Raises:
        ValueError, TypeError: A count is below 1, or as for `ndgpa.Graph` when called.
    """

    def __init__(
        self,
        block: int,
        cell: int = 1,
        method: str = "auto",
        position: str = "pos",
        edge_weight: str | None = None,
    ) -> None:
        arguments.positive_count("block", block)
        arguments.positive_count("cell", cell)
        self.block, self.cell, self.method = block, cell, method
        self.position, self.edge_weight = position, edge_weight

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        if isinstance(data, HeteroData):
            for node_type in data.node_types:
                stores = [data[x] for x in data.edge_types if x[0] == x[2] == node_type]
                self._coarsen(data[node_type], stores, f"node type {node_type!r}")
        else:
            self._coarsen(data, [data] if data.get("edge_index") is not None else [], "this graph")
        return data

    def _coarsen(self, nodes: Any, edges: list[Any], who: str) -> None:
        """Add the tables to nodes, by their edges among each other or by their positions."""
        position = nodes.get(self.position)
        _check_has_place(who, edges, position, self.position)
        if edges:
            edge_index = torch.cat([store.edge_index for store in edges], dim=1)
        else:
            edge_index = torch.empty(2, 0, dtype=torch.int64, device=position.device)
        weight = None
        if self.edge_weight is not None and edges:
            weight = torch.cat([store[self.edge_weight] for store in edges])
        structure = _graph(
            edge_index,
            nodes.num_nodes,
            self.block,
            self.cell,
            position=position,
            method=self.method if edges else "kd",
            edge_weight=weight,
        )
        nodes.gpa_block_of_site = structure.block_of_site
        nodes.gpa_cell_of_block = structure.cell_of_block
        nodes.gpa_num_blocks = structure.num_blocks
        nodes.gpa_num_cells = structure.num_cells

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(block={self.block}, cell={self.cell}, method={self.method!r})"
        )


def structure_of(data: Any) -> Clusters:
    """Build the structure of a graph, or of a batch of graphs that do not see each other.

    Args:
        data: A `Data` or `Batch` whose graphs went through `GPACoarsening`; or one type of nodes of
            a `HeteroData`, as `structure_of(data["paper"])`.

    Raises:
        ValueError: A graph has no tables.
        TypeError: `data` has several types of nodes.
    """
    _check_one_type(data)
    _check_coarsened(data)
    block_of_site, cell_of_block = data.gpa_block_of_site, data.gpa_cell_of_block
    graph_of_site = data.get("batch")
    if graph_of_site is None:
        return Clusters(block_of_site, cell_of_block)
    blocks, cells = data.gpa_num_blocks, data.gpa_num_cells
    graphs = torch.arange(len(blocks), device=blocks.device)
    group = graphs.repeat_interleave(blocks)
    block_of_site = block_of_site + (blocks.cumsum(0) - blocks)[graph_of_site]
    cell_of_block = cell_of_block + (cells.cumsum(0) - cells)[group]
    return Clusters(block_of_site, cell_of_block, group=group)


class GPAConv(nn.Module):
    """Apply message passing and attention over the whole graph in parallel, then an MLP.

    The layer has the form of `torch_geometric.nn.GPSConv`, but with layer norm, so that the output
    of a graph does not depend on its batch.

    Source: Rampasek et al. 2022, "Recipe for a General, Powerful, Scalable Graph Transformer", with
    Grid Partitioned Attention as the attention.

    Args:
        channels: Features of a node, in and out.
        heads: The number of heads; divides `channels`.
        conv: The message passing, called as `conv(x, edge_index, **kwargs)`; None for none.
        operator: The attention, e.g. `ndgpa.GPA(12)` or `ndgpa.Full()`.
        block, cell: As for `ndgpa.Graph`, for calls without a structure.
        dropout: Probability of dropout after message passing, after attention and in the MLP.

    Raises:
        ValueError, TypeError: A count is below 1, or the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        conv: nn.Module | None = None,
        operator: Operator = GPA(12),  # noqa: B008 (frozen)
        block: int = 16,
        cell: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        arguments.positive_count("block", block)
        arguments.positive_count("cell", cell)
        self.block, self.cell = block, cell
        self.conv = conv
        self.attention = SpatialAttention(channels, heads, operator=operator)
        self.dropout = nn.Dropout(dropout)
        self.norm_conv = nn.LayerNorm(channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.norm_out = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels, channels),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        x: Float[Tensor, "n channels"],
        edge_index: Int[Tensor, "2 E"],
        batch: Int[Tensor, " n"] | None = None,
        structure: SpatialStructure | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "n channels"]:
        """Apply the layer.

        Args:
            x: Features of all nodes of the batch.
            edge_index: Edges of the batch; none between graphs.
            batch: The graph of each node, ascending; None for one graph.
            structure: From `structure_of`. None builds one from the edges, which takes longer than
                the layer, so pass one where graphs are used repeatedly.
            kwargs: Passed to `conv`.
        """
        if structure is None:
            structure = structure_of_edges(edge_index, len(x), self.block, self.cell, batch)
        attended = self.attention(x[None], structure)[0]
        out = self.norm_attention(x + self.dropout(attended))
        if self.conv is not None:
            passed = self.conv(x, edge_index, **kwargs)
            out = out + self.norm_conv(x + self.dropout(passed))
        return self.norm_out(out + self.mlp(out))


def structure_of_edges(
    edge_index: Int[Tensor, "2 E"],
    num_nodes: int,
    block: int,
    cell: int = 1,
    batch: Int[Tensor, " n"] | None = None,
) -> Clusters:
    """Build the structure of a batch that did not go through `GPACoarsening`, graph by graph.

    Args:
        batch: The graph of each node, ascending; None for one graph.

    Raises:
        ValueError: `batch` descends, or an edge joins two graphs.
    """
    if batch is None:
        return _graph(edge_index, num_nodes, block, cell)
    _check_batch(batch, edge_index, num_nodes)
    sizes = batch.unique_consecutive(return_counts=True)[1].tolist()
    graphs, first = [], 0
    for size in sizes:
        inside = (edge_index[0] >= first) & (edge_index[0] < first + size)
        graphs.append(_graph(edge_index[:, inside] - first, size, block, cell))
        first += size
    return disjoint(graphs)


def _graph(edge_index: Tensor, num_nodes: int, block: int, cell: int, **options: Any) -> Clusters:
    """Build a `Graph`, with blocks and cells no larger than the graph."""
    block = min(block, max(num_nodes, 1))
    cell = min(cell, max(-(-num_nodes // block), 1))
    return Graph(edge_index, num_nodes, block, cell, **options)


def _check_one_type(data: Any) -> None:
    if hasattr(data, "node_types"):
        raise TypeError(
            f"each type of nodes is a space of its own; got {type(data).__name__}: pass one of "
            f"them, such as data[{data.node_types[0]!r}]"
        )


def _check_has_place(who: str, edges: list[Any], position: Any, name: str) -> None:
    if not edges and position is None:
        raise ValueError(
            f"{who} has neither edges between its nodes nor positions ({name!r}); add edges first, "
            "e.g. with KNNGraph or AddMetaPaths"
        )


def _check_coarsened(data: Any) -> None:
    if data.get("gpa_block_of_site") is None:
        raise ValueError(
            "this graph has no GPA tables; apply GPACoarsening first, as a transform or "
            "pre_transform"
        )


def _check_batch(batch: Any, edge_index: Any, num_nodes: int) -> None:
    arguments.int_vector("batch", batch)
    check_edge_index(edge_index)
    if len(batch) != num_nodes:
        raise ValueError(f"batch has {len(batch)} entries but there are {num_nodes} nodes")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError("batch must be sorted, so that the nodes of each graph are contiguous")
    if bool((batch[edge_index[0]] != batch[edge_index[1]]).any()):
        raise ValueError("edge_index connects nodes of different graphs in the batch")
