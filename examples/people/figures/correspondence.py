"""Where in one picture of somebody the surface that another picture shows can be seen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.spatial import cKDTree

COPYABLE = 0.016  # body heights: 2 pixels at 128 rows


@dataclass(frozen=True)
class Correspondence:
    """For every pixel of the target the nearest pixel of the source, on the surface.

    Args:
        row: -1 where the target shows the background or a part that the source does not.
        column: Likewise.
        distance: Between the two surface points in body heights; inf where there is none.
    """

    row: Int[np.ndarray, "h w"]
    column: Int[np.ndarray, "h w"]
    distance: Float[np.ndarray, "h w"]

    @property
    def copyable(self) -> Bool[np.ndarray, "h w"]:
        """Tell whether the source shows the point."""
        return self.distance < COPYABLE


def correspondence(
    source_part: UInt8[np.ndarray, "H W"],
    source_local: Float[np.ndarray, "H W 3"],
    target_part: UInt8[np.ndarray, "h w"],
    target_local: Float[np.ndarray, "h w 3"],
) -> Correspondence:
    """Match two figures of one identity: same part, nearest surface point.

    Args:
        source_part: As in `Figure`.
        source_local: As in `Figure`, in any floating dtype.
        target_part: Likewise.
        target_local: Likewise.
    """
    row, column = np.full((2, *target_part.shape), -1, np.int64)
    distance = np.full(target_part.shape, np.inf, np.float32)
    for part in np.intersect1d(source_part, target_part):
        if part == 0:
            continue
        there, here = source_part == part, target_part == part
        tree = cKDTree(source_local[there].astype(np.float64))
        distance[here], nearest = tree.query(target_local[here].astype(np.float64))
        rows, columns = np.nonzero(there)
        row[here], column[here] = rows[nearest], columns[nearest]
    return Correspondence(row, column, distance)
