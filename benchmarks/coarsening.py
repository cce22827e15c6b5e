"""How well, and how fast, are graphs cut into blocks and cells?

    python benchmarks/coarsening.py [--quick] [--largest BA=100000 ...]

Blocks of 32 nodes, cells of 8 blocks. Graphs: `mesh`, marching cubes of a bumpy torus (its nodes
about the number asked for); `kNN`, the 6 nearest neighbours of random points in a cube; `SBM`, a
stochastic block model of 50 communities, 8 edges a node inside and 2 outside; `BA`, preferential
attachment, 4 edges for each new node.

Columns: `cpu_s` processor time of `ndgpa.Graph`, which other work on the machine changes little;
`cut` the share of edges between blocks, `cell_cut` between cells; `padding_%` how much larger than
the number of nodes the padded table of blocks is; `balance` the largest block over the mean block;
`pieces` connected pieces of a block, the mean. `kd` needs positions. "not run" is above `--largest`
of that graph, or came after the run was ended: the file is written after each graph.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from measure import write
from scipy.sparse import csgraph, csr_array
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from torch import Tensor
from tqdm import tqdm

import ndgpa

BLOCK, CELL = 32, 8
SIZES = (1_000, 10_000, 100_000, 1_000_000)

Positions = Tensor | None


def main(quick: bool, largest: dict[str, int]) -> None:
    sizes = SIZES[:1] if quick else SIZES
    left = [(size, name) for size in sizes for name in GRAPHS]
    rows: list[dict[str, Any]] = []
    for size, name in tqdm(list(left), desc="coarsening"):
        if size <= largest.get(name, size):
            edges, nodes, position = GRAPHS[name](size)
            for method in methods(position):
                rows.append(row(name, method, edges, nodes, position))
                tqdm.write(str(rows[-1]))
            left.remove((size, name))
        if not quick:
            save(rows, left, largest)


def save(rows: list[dict[str, Any]], left: list[tuple[int, str]], largest: dict[str, int]) -> None:
    question = __doc__.splitlines()[0] if __doc__ else ""
    dashes = [{"graph": name, "nodes": size, "method": "not run"} for size, name in left]
    limits = {"largest": largest} if largest else {}
    write("coarsening", question, rows + dashes, block=BLOCK, cell=CELL, seed=0, **limits)


def methods(position: Positions) -> Iterator[str]:
    yield from ("metis", "landmark")
    if position is not None:
        yield "kd"


def row(name: str, method: str, edges: Tensor, nodes: int, position: Positions) -> dict[str, Any]:
    start = time.process_time()
    structure = ndgpa.Graph(edges, nodes, BLOCK, CELL, position=position, method=method)
    seconds = time.process_time() - start
    block, cell = structure.block_of_site, structure.cell_of_site
    sizes = structure.block_sizes
    return {
        "graph": name,
        "nodes": nodes,
        "edges": edges.shape[1],
        "method": method,
        "cpu_s": seconds,
        "cut": float((block[edges[0]] != block[edges[1]]).float().mean()),
        "cell_cut": float((cell[edges[0]] != cell[edges[1]]).float().mean()),
        "padding_%": 100 * (structure.num_blocks * structure.sites_per_block / nodes - 1),
        "balance": float(sizes.max() / sizes.float().mean()),
        "pieces": pieces(edges, block),
    }


def pieces(edges: Tensor, block: Tensor) -> float:
    """Connected pieces of a block, the mean: components when the cut edges are gone."""
    kept = edges[:, block[edges[0]] == block[edges[1]]].numpy()
    n = len(block)
    inside = csr_array((np.ones(kept.shape[1], dtype=np.int8), kept), shape=(n, n))
    return csgraph.connected_components(inside, directed=False)[0] / int(block.max() + 1)


# Graphs: edges (2, E), each once; nodes; positions


def mesh(nodes: int) -> tuple[Tensor, int, Positions]:
    side = max(16, round((nodes / 1.66) ** 0.5))
    axis = np.linspace(-1.5, 1.5, side, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis[side // 4 : -(side // 4)], indexing="ij", sparse=True)
    volume = 0.05 * np.sin(9 * x) * np.sin(9 * y) * np.sin(9 * z)  # 0.9 GB for a million nodes
    volume += 0.3
    np.square(volume, out=volume)
    volume -= (np.hypot(x, y) - 0.9) ** 2
    volume -= z**2
    position, faces, _, _ = marching_cubes(volume, 0.0)
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return _once(pairs), len(position), torch.from_numpy(position.copy())


def nearest(nodes: int) -> tuple[Tensor, int, Positions]:
    position = np.random.default_rng(0).random((nodes, 3))
    _, index = cKDTree(position).query(position, 7)
    pairs = np.stack([np.repeat(index[:, 0], 6), index[:, 1:].reshape(-1)], axis=1)
    return _once(pairs), nodes, torch.from_numpy(position)


def communities(nodes: int) -> tuple[Tensor, int, Positions]:
    rng = np.random.default_rng(0)
    of_node = rng.integers(0, 50, nodes)
    order = of_node.argsort(kind="stable")
    start = np.searchsorted(of_node[order], np.arange(51))
    a = rng.integers(0, nodes, 4 * nodes)
    low, high = start[of_node[a]], start[of_node[a] + 1]
    b = order[low + (rng.random(len(a)) * (high - low)).astype(np.int64)]
    apart = rng.integers(0, nodes, (nodes, 2))
    return _once(np.concatenate([np.stack([a, b], axis=1), apart])), nodes, None


def preferential(nodes: int, each: int = 4) -> tuple[Tensor, int, Positions]:
    """Each new node is tied to ends of earlier edges, drawn from all ends so far."""
    rng = np.random.default_rng(0)
    ends = np.empty(2 * each * nodes, dtype=np.int64)
    ends[: 2 * each] = np.arange(2 * each)
    for node in range(2 * each, nodes):
        filled = 2 * each * (node - 2 * each + 1)
        chosen = ends[(rng.random(each) * filled).astype(np.int64)]
        ends[filled : filled + 2 * each : 2] = node
        ends[filled + 1 : filled + 2 * each : 2] = chosen
    pairs = ends[2 * each : 2 * each * (nodes - 2 * each + 1)].reshape(-1, 2)
    return _once(pairs), nodes, None


def _once(pairs: np.ndarray) -> Tensor:
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1).astype(np.int64)
    code = np.sort(pairs[:, 0] * (pairs.max() + 1) + pairs[:, 1])
    code = code[np.append(True, code[1:] != code[:-1])]
    return torch.from_numpy(np.stack([code // (pairs.max() + 1), code % (pairs.max() + 1)]))


GRAPHS: dict[str, Callable[[int], tuple[Tensor, int, Positions]]] = {
    "mesh": mesh,
    "kNN": nearest,
    "SBM": communities,
    "BA": preferential,
}


def size_limit(text: str) -> tuple[str, int]:
    name, _, nodes = text.partition("=")
    if name not in GRAPHS or not nodes.isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not GRAPH=NODES with a graph of {', '.join(GRAPHS)}"
        )
    return name, int(nodes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest size, no result file")
    parser.add_argument(
        "--largest", type=size_limit, nargs="*", default=[], help="GRAPH=NODES: no size above it"
    )
    options = parser.parse_args()
    main(options.quick, dict(options.largest))
