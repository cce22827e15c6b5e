"""Cloth and backdrops cut from photographs, in place of drawn ones."""

from dataclasses import dataclass, replace

import numpy as np

from examples.people.figures.backdrop import Backdrop
from examples.people.figures.fabric import PHOTOS, Cloth, Patch

CLOTH_PX = 80, 900  # of a photograph on a body height
BACKDROP_PX = 90, 420  # of a photograph on the height of the picture
PALER = 0.0, 0.6  # how far a backdrop is brought towards the drawn wall


@dataclass(frozen=True)
class Patches:
    """Replace a share of what was drawn, by draws of its own: the rest stays the same to the bit.

    Args:
        generator: Of the draws.
        share: Of cloths and of backdrops, from 0 to 1.
    """

    generator: np.random.Generator
    share: float

    def cloth(self, drawn: Cloth) -> Cloth:
        if not self.chosen():
            return drawn
        return replace(drawn, pattern="photo", patch=self.draw(), zoom=self.size(*CLOTH_PX))

    def backdrop(self, drawn: Backdrop) -> Backdrop:
        if not self.chosen():
            return drawn
        paler = self.generator.uniform(*PALER)
        return replace(drawn, patch=self.draw(), zoom=self.size(*BACKDROP_PX), paler=paler)

    def chosen(self) -> bool:
        return bool(self.generator.random() < self.share)

    def draw(self) -> Patch:
        """Draw a place in a photograph, and an order of its colours."""
        red, green, blue = self.generator.permutation(3).tolist()
        return Patch(
            photo=str(self.generator.choice(PHOTOS)),
            at=(self.generator.random(), self.generator.random()),
            channels=(red, green, blue),
        )

    def size(self, least: float, most: float) -> float:
        return float(np.exp(self.generator.uniform(np.log(least), np.log(most))))
