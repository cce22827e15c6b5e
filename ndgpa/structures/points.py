"""Point clouds: recursive kd-splits into cells, and of each cell into blocks."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.clusters import Clusters


def PointCloud(
    position: Float[Tensor, "n p"],
    block: int,
    cell: int = 1,
    time: Int[Tensor, " n"] | None = None,
) -> Clusters:
    """Partition points in any dimension into compact blocks and cells of exact size.

    Every set is split across its widest axis at a multiple of the size wanted, until it has that
    size: first into cells, then each cell into blocks. The last block, and so the last cell, may be
    smaller. Blocks are numbered along the splits, so that neighbours in number are near in space.

    Source: the kd-tree of Bentley 1975, with the widest axis split at each step.

    Args:
        position: (points, dimensions), coordinates, finite, any floating dtype and device. Axes
            are compared with each other, so they must have one unit.
        block: Points in a block.
        cell: Blocks in a cell.
        time: (n,) int or None, the time of each point, for causal attention.

    Returns:
        A structure on the device of `position`; equal input gives the equal structure.

    Raises:
        ValueError: There is no point, a coordinate is not finite, or a count is below 1 or too
            large for the points.
        TypeError: Positions are not floating, or a count is not an int.

    Example:
        `PointCloud(torch.rand(1000, 3), block=8, cell=4)` has 125 blocks in 32 cells.
    """
    check_points(position, block, cell)
    coordinates = position.detach().double().cpu().numpy()
    block_of_site, cell_of_block = kd_partition(coordinates, block, cell)
    device = position.device
    return Clusters(
        torch.from_numpy(block_of_site).to(device), torch.from_numpy(cell_of_block).to(device), time
    )


def kd_partition(
    coordinates: np.ndarray, sites_per_block: int, blocks_per_cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the block of each of n points (n, p) and the cell of each block, int64."""
    sites = np.arange(len(coordinates))[None]
    cells = _split(coordinates, sites, sites_per_block * blocks_per_cell)
    blocks = _split(coordinates, cells, sites_per_block)
    cell_of_block = np.arange(len(cells)).repeat(len(blocks) // len(cells))
    filled = (blocks >= 0).any(axis=1)
    blocks, cell_of_block = blocks[filled], cell_of_block[filled]
    block_of_site = np.empty(len(coordinates), dtype=np.int64)
    rows, places = (blocks >= 0).nonzero()
    block_of_site[blocks[rows, places]] = rows
    return block_of_site, cell_of_block


def _split(coordinates: np.ndarray, sets: np.ndarray, size: int) -> np.ndarray:
    """Split each row of sites into sets of `size`; -1 fills what is missing in the last of a row.

    All rows are split at once, level by level. Halving a number of sets that is odd leaves two
    numbers that differ by one, and halving those leaves two again: so rows are kept in at most two
    groups, one for each number of sets that they still make.
    """
    count = -(-sets.shape[1] // size)
    pad = count * size - sets.shape[1]
    rows = np.pad(sets, ((0, 0), (0, pad)), constant_values=-1)
    # by the number of sets that they still make: rows, and the number of their first set
    groups = {count: (rows, np.arange(len(rows)) * count)}
    while max(groups) > 1:
        halves: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for many, (rows, first) in groups.items():
            if many == 1:
                halves.setdefault(1, []).append((rows, first))
                continue
            left = -(-many // 2)
            parts = _halve(coordinates, rows, left * size)
            halves.setdefault(left, []).append((parts[0], first))
            halves.setdefault(many - left, []).append((parts[1], first + left))
        groups = {
            many: (np.concatenate([r for r, _ in parts]), np.concatenate([f for _, f in parts]))
            for many, parts in halves.items()
        }
    rows, first = groups[1]
    return rows[first.argsort()]


def _halve(coordinates: np.ndarray, rows: np.ndarray, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Split each row across its widest axis, `left` sites to the left; -1 goes to the right."""
    missing = rows < 0
    widest, best = np.full(len(rows), -np.inf), np.empty(rows.shape)
    for axis in coordinates.T:
        along = axis[rows]
        along[missing] = np.inf
        low, high = along.min(axis=1), np.where(missing, -np.inf, along).max(axis=1)
        wider = high - low > widest
        widest[wider], best[wider] = (high - low)[wider], along[wider]
    order = best.argpartition(left - 1, axis=1)
    parts = np.take_along_axis(rows, order, axis=1)
    return parts[:, :left], parts[:, left:]


def check_points(position: Any, block: Any, cell: Any) -> None:
    if not isinstance(position, Tensor):
        raise TypeError(f"position must be a tensor; got {type(position).__name__}")
    if not position.dtype.is_floating_point:
        raise TypeError(f"position must have a floating-point dtype; got {position.dtype}")
    if position.ndim != 2 or position.shape[1] == 0:
        raise ValueError(
            f"position must have shape (points, dimensions); got {tuple(position.shape)}"
        )
    if len(position) == 0:
        raise ValueError("position is empty; a structure needs at least one site")
    if not bool(position.isfinite().all()):
        raise ValueError("position has NaN or infinite coordinates")
    arguments.counts(len(position), block, cell)
