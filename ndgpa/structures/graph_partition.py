"""Graphs cut into parts of exact size, on numpy arrays: by METIS, or by hops to landmarks."""

from typing import NamedTuple

import numpy as np

from ndgpa.structures.points import kd_partition

# A graph is first split into parts of 64 cells, or 64 times that: one METIS call for very many
# parts is slower and cuts more edges than calls for parts of parts.
_AT_A_TIME = 64


class Edges(NamedTuple):
    """Each edge in both directions and once, no self loops, ordered by source, then target."""

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray  # int64, at least 1


def undirected(
    source: np.ndarray, target: np.ndarray, num_nodes: int, weight: np.ndarray | None = None
) -> Edges:
    """Bring edges of any order, direction and number into the one form; float64 weights."""
    keep = np.tile(source != target, 2)
    code = np.concatenate([source * num_nodes + target, target * num_nodes + source])
    if weight is None:
        code = np.sort(code[keep])  # np.unique hashes, which takes several times as long
        code = code[np.append(True, code[1:] != code[:-1])[: len(code)]]
        return Edges(code // num_nodes, code % num_nodes, np.ones(len(code), dtype=np.int64))
    keep &= np.tile(weight > 0, 2)
    code, edge = np.unique(code[keep], return_inverse=True)
    weight = np.bincount(edge, weights=np.tile(weight, 2)[keep], minlength=len(code))
    whole = (weight * (1000 / weight.mean() if len(weight) else 1)).round().clip(1, 1_000_000)
    return Edges(code // num_nodes, code % num_nodes, whole.astype(np.int64))


# From the top down


def metis_partition(
    edges: Edges, num_nodes: int, sites_per_block: int, blocks_per_cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the block of each node and the cell of each block with METIS, from the top down."""
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


def _split_parts(edges: Edges, part: np.ndarray, size: int) -> np.ndarray:
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
    edges = Edges(*(x[inside] for x in edges))
    new = first[part] + _metis_labels(edges, part, sizes, counts, room, first)
    return _fit(edges, part, new, room, first)


def _metis_labels(
    edges: Edges,
    part: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    room: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """Let METIS say which of the new parts of its part each node belongs to, from 0.

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
    edges: Edges, part: np.ndarray, new: np.ndarray, room: np.ndarray, first: np.ndarray
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
    edges: Edges, part: np.ndarray, new: np.ndarray, left: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each node the part with room to go to, and the weight of edges it would gain."""
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
    """Find for each old part the first of its new parts that has most room."""
    old = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(left))))
    order = np.lexsort((-np.arange(len(left)), left, old))
    last = np.append(old[order][1:] != old[order][:-1], True)
    return order[last]


def _rank(ordered: np.ndarray) -> np.ndarray:
    """Number the entries of each run of equal entries."""
    index = np.arange(len(ordered))
    begins = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    return index - np.maximum.accumulate(np.where(begins, index, 0))


# By hops to landmarks


def landmark_partition(
    edges: Edges, num_nodes: int, sites_per_block: int, blocks_per_cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the block of each node and the cell of each block by splits of hops to landmarks."""
    coordinates = _landmark_coordinates(edges, num_nodes)
    return kd_partition(coordinates, sites_per_block, blocks_per_cell)


def _landmark_coordinates(edges: Edges, num_nodes: int, landmarks: int = 6) -> np.ndarray:
    """Count hops from nodes far from each other, smoothed along edges: (n, landmarks + 1).

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
    """Find the farthest node that is reached."""
    return int(np.where(np.isinf(hops), -1, hops).argmax())
