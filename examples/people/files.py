"""Pictures that stay on disk until they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.people.frames import Frame
from examples.people.geometry import cut
from examples.people.pictures import Pictures


@dataclass(frozen=True)
class Files(Pictures):
    """Image files or frames of videos, each cut by its box and brought to one size."""

    size: tuple[int, int]
    frames: Sequence[Frame]
    boxes: Int[np.ndarray, "N 4"]
    points: Float[np.ndarray, "N 18 3"]
    pairs: Int[np.ndarray, "P 2"]
    bank: Float[np.ndarray, "M 18 3"] | None = None
    broken: dict[int, str] = field(default_factory=dict, repr=False)

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        left, top, right, bottom = map(int, self.boxes[i])
        return cut(self.frames[i].read(), (left, top, right, bottom), self.size)
