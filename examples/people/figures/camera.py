"""Where a figure stands in its picture.

Lengths are in body heights: x to the right, y up from the ground, z towards the viewer. The camera
is orthographic, so a length has the same number of pixels everywhere.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

FIGURE = 0.9  # rows that a body of height 1 fills, of all rows
GROUND = 0.03  # rows below the feet, of all rows
NARROWEST = 0.45  # width over height; in less, hanging arms do not fit
SMALLEST, LARGEST = 32, 4096  # pixels


@dataclass(frozen=True)
class Camera:
    """A picture of `height` times `width` pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < SMALLEST or self.width < NARROWEST * self.height:
            raise ValueError(
                f"a figure does not fit {self.height}x{self.width} pixels; both sides need "
                f"{SMALLEST} and the width {NARROWEST} of the height"
            )
        if max(self.height, self.width) > LARGEST:
            raise ValueError(
                f"figures have at most {LARGEST} pixels a side, got {self.height}x{self.width}"
            )

    @property
    def scale(self) -> float:
        """The number of pixels in a body height."""
        return FIGURE * self.height

    def project(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 2"]:
        """Project to x and y in pixels; the centre of the first pixel is 0, 0."""
        x = self.width / 2 + points[..., 0] * self.scale
        y = self.height * (1 - GROUND) - points[..., 1] * self.scale
        return np.stack([x, y], axis=-1) - 0.5

    def contains(
        self, points: Float[np.ndarray, "*n 3"], margin: Float[np.ndarray, "*n"] | float = 0.0
    ) -> Bool[np.ndarray, "*n"]:
        """Tell which points are in the picture, at least `margin` body heights from its edge."""
        pixels, inset = self.project(points), np.asarray(margin)[..., None] * self.scale - 0.5
        edge = np.array([self.width, self.height]) - 1
        return ((pixels >= inset) & (pixels <= edge - inset)).all(axis=-1)
