"""Graphs: blocks and cells of exact size, cut where few edges are."""

import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.clusters import Clusters
from ndgpa.structures.points import check_points, kd_partition

METHODS = ("auto", "kd", "metis", "landmark")

# A graph is first split into parts of 64 cells, or 64 times that: one METIS call for very many
# parts is slower and cuts more edges than calls for parts of parts.
_AT_A_TIME = 64


def Graph(
    edge_index: Int[Tensor, "2 E"],
    num_nodes: int,
    block: int,
    cell: int = 1,
    position: Float[Tensor, "n p"] | None = None,
    method: str = "auto",
    edge_weight: Real[Tensor, " E"] | None = None,
    time: Int[Tensor, " n"] | None = None,
) -> Clusters:
    """A partition of a graph into connected-as-can-be blocks and cells of exact size.

    All blocks have `block` nodes and all cells `cell` blocks, but for the last of each. Blocks
    are numbered so that neighbours in number are near in the graph, so `coarsen` gives good
    further levels.

    Edges count in both directions. Self loops count nothing. An edge that is given twice counts
    once; with weights, the weights of its copies are added. Nodes without edges are welcome.

    Source: "metis": multilevel partitioning of Karypis and Kumar 1998, applied from the top down
    (parts, then cells, then blocks). "kd": as `ndgpa.PointCloud`. "landmark": hops to six nodes far
    from each other, taken for coordinates.

    Args:
        edge_index: Pairs of nodes, as in PyTorch Geometric.
        num_nodes: How many nodes there are.
        block: Nodes in a block.
        cell: Blocks in a cell.
        position: Coordinates of the nodes, finite, floating.
        method: "kd" splits by position and looks at no edge, "metis" needs the package pymetis,
            "landmark" scipy. "auto" takes kd where there are positions, else metis, else landmark
            with a warning.
        edge_weight: Not negative; what it costs to cut an edge.
        time: The time of each node, for causal attention.

    Returns:
        A structure on the device of `edge_index`; equal input gives the equal structure.

    Raises:
        ValueError, TypeError: The arguments do not describe a graph, or a count does not fit it.
        ImportError: The method needs a package that is not installed (extra `graph`).
    """
    _check_graph(edge_index, num_nodes, block, cell, position, edge_weight, time)
    arguments.one_of("method", method, METHODS)
    method = _pick(method, position is not None)
    if method == "kd":
        assert position is not None
        coordinates = position.detach().double().cpu().numpy()
        block_of_site, cell_of_block = kd_partition(coordinates, block, cell)
    else:
        edges = _undirected(edge_index, num_nodes, edge_weight)
        partition = _metis_partition if method == "metis" else _landmark_partition
        block_of_site, cell_of_block = partition(edges, num_nodes, block, cell)
    device = edge_index.device
    return Clusters(
        torch.from_numpy(block_of_site).to(device), torch.from_numpy(cell_of_block).to(device), time
    )


def _pick(method: str, has_position: bool) -> str:
    """The method that "auto" means here; an error if the one wanted cannot run."""
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


class _Edges(NamedTuple):
    """Each edge in both directions and once, no self loops, ordered by source, then target."""

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray  # int64, at least 1


def _undirected(
    edge_index: Int[Tensor, "2 E"], num_nodes: int, edge_weight: Real[Tensor, " E"] | None
) -> _Edges:
    source, target = edge_index.detach().long().cpu().numpy()
    keep = source != target
    code = np.concatenate([source * num_nodes + target, target * num_nodes + source])
    keep = np.concatenate([keep, keep])
    if edge_weight is None:
        code = np.sort(code[keep])  # np.unique hashes, which takes several times as long
        code = code[np.append(True, code[1:] != code[:-1])[: len(code)]]
        return _Edges(code // num_nodes, code % num_nodes, np.ones(len(code), dtype=np.int64))
    weight = edge_weight.detach().double().cpu().numpy()
    keep &= np.tile(weight > 0, 2)
    code, edge = np.unique(code[keep], return_inverse=True)
    weight = np.bincount(edge, weights=np.tile(weight, 2)[keep], minlength=len(code))
    whole = (weight * (1000 / weight.mean() if len(weight) else 1)).round().clip(1, 1_000_000)
    return _Edges(code // num_nodes, code % num_nodes, whole.astype(np.int64))


# From the top down


def _metis_partition(
    edges: _Edges, num_nodes: int, sites_per_block: int, blocks_per_cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """The block of each node and the cell of each block."""
    cell_of_site = np.zeros(num_nodes, dtype=np.int64)
    size = sites_per_block * blocks_per_cell
    levels = [size]
    while size * _AT_A_TIME < num_nodes:
        size *= _AT_A_TIME
        levels.append(size)
    for size in reversed(levels):
        cell_of_site = _split_parts(edges, cell_of_site, size)
    block_of_site = _split_parts(edges, cell_of_site, sites_per_block)
    cell_of_block = np.empty(block_of_site.max() + 1, dtype=np.int64)
    cell_of_block[block_of_site] = cell_of_site
    return block_of_site, cell_of_block


def _split_parts(edges: _Edges, part: np.ndarray, size: int) -> np.ndarray:
    """Split every part into parts of `size`; the last of the last may be smaller.

    All parts but the last must have the same multiple of `size` nodes. New parts are numbered in
    the order of the old.
    """
    sizes = np.bincount(part)
    counts = -(-sizes // size)
    first = counts.cumsum() - counts  # the number of the first new part of each
    room = np.full(counts.sum(), size)
    room[-1] = sizes[-1] - (counts[-1] - 1) * size
    inside = part[edges.source] == part[edges.target]
    edges = _Edges(*(x[inside] for x in edges))
    new = first[part] + _metis_labels(edges, part, sizes, counts, room, first)
    return _fit(edges, part, new, room, first)


def _metis_labels(
    edges: _Edges,
    part: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    room: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """Which of the new parts of its part each node is put in by METIS, from 0.

    Nodes are brought into the order of their parts once, so that the subgraph of a part is a slice.
    """
    import pymetis

    order = part.argsort(kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    by_place = place[edges.source].argsort(kind="stable")
    degree = np.bincount(place[edges.source], minlength=len(order))
    start = np.concatenate([[0], degree.cumsum()])
    target, weight = place[edges.target[by_place]], edges.weight[by_place]
    labels = np.zeros(len(order), dtype=np.int64)
    ends = sizes.cumsum()
    for number in np.flatnonzero(counts > 1):
        begin, end = ends[number] - sizes[number], ends[number]
        own = slice(start[begin], start[end])
        if own.start == own.stop or sizes[number] == counts[number]:
            labels[begin:end] = np.arange(end - begin) // room[first[number]]
            continue
        share = room[first[number] : first[number] + counts[number]] / sizes[number]
        _, found = pymetis.part_graph(
            int(counts[number]),
            pymetis.CSRAdjacency(start[begin : end + 1] - own.start, target[own] - begin),
            eweights=weight[own],
            tpwgts=share.tolist(),
            options=pymetis.Options(seed=0),
        )
        labels[begin:end] = found
    return labels[place]


def _fit(
    edges: _Edges, part: np.ndarray, new: np.ndarray, room: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Move nodes from new parts that are too full to some that have room, within their old part.

    In each round every part that is too full offers as many nodes as it has too many: those that
    lose least by going to the neighbouring part with room that they are most tied to.
    """
    while True:
        left = room - np.bincount(new, minlength=len(room))
        if (left >= 0).all():
            return new
        goal, gain = _best_goal(edges, part, new, left, first)
        offered = np.flatnonzero(left[new] < 0)
        offered = offered[np.lexsort((-gain[offered], new[offered]))]
        offered = offered[_rank(new[offered]) < -left[new[offered]]]
        offered = offered[np.lexsort((-gain[offered], goal[offered]))]
        accepted = offered[_rank(goal[offered]) < left[goal[offered]]]
        new = new.copy()
        new[accepted] = goal[accepted]


def _best_goal(
    edges: _Edges, part: np.ndarray, new: np.ndarray, left: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each node, the part with room to go to, and the weight of edges it would gain inside."""
    goal = _roomiest(left, first)[part]
    gain = np.zeros(len(new), dtype=np.int64)
    leaving = left[new[edges.source]] < 0
    source, target, weight = (x[leaving] for x in edges)
    towards = new[target]
    at_home = towards == new[source]
    np.subtract.at(gain, source[at_home], weight[at_home])
    away = ~at_home & (left[towards] > 0)
    tie, inverse = np.unique(source[away] * len(left) + towards[away], return_inverse=True)
    strength = np.bincount(inverse, weights=weight[away], minlength=len(tie)).astype(np.int64)
    node, choice = tie // len(left), tie % len(left)
    strongest = np.lexsort((-choice, strength, node))
    last = np.append(node[strongest][1:] != node[strongest][:-1], True)[: len(node)]
    best = strongest[last]
    goal[node[best]] = choice[best]
    gain[node[best]] += strength[best]
    return goal, gain


def _roomiest(left: np.ndarray, first: np.ndarray) -> np.ndarray:
    """For each old part, the first of its new parts that has most room."""
    old = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(left))))
    order = np.lexsort((-np.arange(len(left)), left, old))
    last = np.append(old[order][1:] != old[order][:-1], True)
    return order[last]


def _rank(ordered: np.ndarray) -> np.ndarray:
    """The position of each entry in its run of equal entries."""
    index = np.arange(len(ordered))
    begins = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    return index - np.maximum.accumulate(np.where(begins, index, 0))


# By hops to landmarks


def _landmark_partition(
    edges: _Edges, num_nodes: int, sites_per_block: int, blocks_per_cell: int
) -> tuple[np.ndarray, np.ndarray]:
    coordinates = _landmark_coordinates(edges, num_nodes)
    return kd_partition(coordinates, sites_per_block, blocks_per_cell)


def _landmark_coordinates(edges: _Edges, num_nodes: int, landmarks: int = 6) -> np.ndarray:
    """Hops from nodes that are far from each other, smoothed along edges; (n, landmarks + 1).

    The last coordinate tells components apart and is the longest, so that they are split first.
    """
    from scipy.sparse import csgraph, csr_array, diags_array

    ones = np.ones(len(edges.source))
    adjacent = csr_array((ones, (edges.source, edges.target)), shape=(num_nodes, num_nodes))
    _, component = csgraph.connected_components(adjacent, directed=False)
    hops = np.empty((landmarks, num_nodes))
    nearest = np.full(num_nodes, np.inf)
    nearest[0] = -np.inf  # any node; the first landmark is the farthest from it
    landmark = _farthest(csgraph.dijkstra(adjacent, indices=0, unweighted=True))
    for row in range(landmarks):
        hops[row] = csgraph.dijkstra(adjacent, indices=landmark, unweighted=True)
        nearest = np.minimum(nearest, hops[row])
        landmark = int(nearest.argmax())
    reached = np.where(np.isinf(hops), -1, hops)
    coordinates = reached.T
    degree = np.maximum(adjacent.sum(axis=1), 1)
    walk = diags_array(1 / degree) @ adjacent
    alone = np.diff(adjacent.indptr) == 0
    for _ in range(3):
        step = walk @ coordinates
        step[alone] = coordinates[alone]
        coordinates = (coordinates + step) / 2
    apart = component * (1.0 + 2 * reached.max())
    return np.column_stack([coordinates, apart])


def _farthest(hops: np.ndarray) -> int:
    """The farthest node that is reached."""
    return int(np.where(np.isinf(hops), -1, hops).argmax())


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
    if time is not None:
        arguments.int_vector("time", time)
        if len(time) != num_nodes:
            raise ValueError(f"time has {len(time)} entries but there are {num_nodes} sites")


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
