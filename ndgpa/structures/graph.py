"""Graphs: blocks and cells of exact size, cut where few edges are."""

import warnings
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.clusters import Clusters
from ndgpa.structures.graph_partition import landmark_partition, metis_partition, undirected
from ndgpa.structures.points import check_points, kd_partition

Method = Literal["auto", "kd", "metis", "landmark"]
METHODS = get_args(Method)


def Graph(
    edge_index: Int[Tensor, "2 E"],
    num_nodes: int,
    block: int,
    cell: int = 1,
    position: Float[Tensor, "n p"] | None = None,
    method: Method = "auto",
    edge_weight: Real[Tensor, " E"] | None = None,
    time: Int[Tensor, " n"] | None = None,
) -> Clusters:
    """Partition a graph into blocks and cells of exact size, cutting few edges.

    All blocks have `block` nodes and all cells `cell` blocks, but for the last of each. Blocks
    are numbered so that neighbours in number are near in the graph, so `coarsen` gives good
    further levels.

    Edges count in both directions. Self loops count nothing. An edge that is given twice counts
    once; with weights, the weights of its copies are added. Nodes without edges are welcome.

    Source: "metis": multilevel partitioning of Karypis and Kumar 1998, applied from the top down
    (parts, then cells, then blocks). "kd": as `ndgpa.PointCloud`. "landmark": hops to six nodes far
    from each other, taken for coordinates.

    Args:
        edge_index: (2, edges) int, pairs of nodes from 0 to `num_nodes` - 1, as in PyTorch
            Geometric.
        num_nodes: How many nodes there are; a node is a site.
        block: Nodes in a block.
        cell: Blocks in a cell.
        position: (nodes, dimensions), coordinates of the nodes, finite, any floating dtype.
        method: "kd" splits by position and looks at no edge, "metis" needs the package pymetis,
            "landmark" scipy. "auto" takes kd where there are positions, else metis, else landmark
            with a warning.
        edge_weight: (edges,), finite and not negative; what it costs to cut an edge. None is 1.
        time: (nodes,) int or None, the time of each node, for causal attention.

    Returns:
        A structure on the device of `edge_index`; equal input gives the equal structure.

    Raises:
        ValueError, TypeError: The arguments do not describe a graph, or a count does not fit it.
        ImportError: The method needs a package that is not installed (extra `graph`).

    Example:
        `Graph(data.edge_index, data.num_nodes, block=16, cell=4)` has blocks of 16 nodes in cells
        of 64.
    """
    _check_graph(edge_index, num_nodes, block, cell, position, edge_weight, time)
    arguments.one_of("method", method, METHODS)
    found = _pick(method, position is not None)
    if found == "kd":
        assert position is not None
        coordinates = position.detach().double().cpu().numpy()
        block_of_site, cell_of_block = kd_partition(coordinates, block, cell)
    else:
        source, target = edge_index.detach().long().cpu().numpy()
        weight = None if edge_weight is None else edge_weight.detach().double().cpu().numpy()
        edges = undirected(source, target, num_nodes, weight)
        partition = metis_partition if found == "metis" else landmark_partition
        block_of_site, cell_of_block = partition(edges, num_nodes, block, cell)
    device = edge_index.device
    return Clusters(
        torch.from_numpy(block_of_site).to(device), torch.from_numpy(cell_of_block).to(device), time
    )


def _pick(method: str, has_position: bool) -> str:
    """Say which method "auto" means here; refuse one that cannot run."""
    if method == "auto" and has_position:
        return "kd"
    if method == "auto" and find_spec("pymetis") is None and find_spec("scipy") is not None:
        warnings.warn(
            "pymetis is not installed, so the graph is cut by hops to landmarks, which cuts more "
            "edges, most of all where a graph has no long distances; pip install 'ndgpa[graph]'",
            stacklevel=3,
        )
        return "landmark"
    method = "metis" if method == "auto" else method
    _check_method(method, has_position)
    return method


def _check_graph(
    edge_index: Any,
    num_nodes: Any,
    block: Any,
    cell: Any,
    position: Any,
    edge_weight: Any,
    time: Any,
) -> None:
    check_edge_index(edge_index)
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int):
        raise TypeError(f"num_nodes must be an int; got {num_nodes!r}")
    if num_nodes < 1:
        raise ValueError(f"num_nodes is {num_nodes}; a structure needs at least one site")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index names node {low if low < 0 else high}; nodes are numbered from 0 to "
                f"{num_nodes - 1}"
            )
    arguments.counts(num_nodes, block, cell)
    if position is not None:
        check_points(position, block, cell)
        if len(position) != num_nodes:
            raise ValueError(f"position has {len(position)} rows but there are {num_nodes} nodes")
    if edge_weight is not None:
        _check_edge_weight(edge_weight, edge_index.shape[1])
    arguments.int_vector_of("time", time, num_nodes, "sites")


def check_edge_index(edge_index: Any) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index must be a tensor; got {type(edge_index).__name__}")
    dtype = edge_index.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"edge_index must have an integer dtype; got {dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must have shape (2, edges); got {tuple(edge_index.shape)}")


def _check_edge_weight(weight: Any, edges: int) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"edge_weight must be a tensor; got {type(weight).__name__}")
    if weight.dtype.is_complex or weight.dtype == torch.bool:
        raise TypeError(f"edge_weight must have a real dtype; got {weight.dtype}")
    if tuple(weight.shape) != (edges,):
        raise ValueError(f"edge_weight must have shape ({edges},); got {tuple(weight.shape)}")
    if not bool(weight.isfinite().all()) or bool((weight < 0).any()):
        raise ValueError("edge_weight must be finite and not negative")


def _check_method(method: str, has_position: bool) -> None:
    if method == "kd" and not has_position:
        raise ValueError("method 'kd' needs positions, and none are given")
    needed = {"metis": "pymetis", "landmark": "scipy"}.get(method)
    if needed is not None and find_spec(needed) is None:
        raise ImportError(
            f"Graph needs {needed} for method {method!r}; install it with: pip install "
            "'ndgpa[graph]', or give positions"
        )
