"""What rendered figures know and photographs do not: which pixel of one picture is in another."""

from pathlib import Path

import numpy as np

from examples.people.figures.cache import Figures
from examples.people.figures.correspondence import correspondence


class Truth:
    """The true correspondence of one split of a folder of figures.

    Args:
        figures: Rendered with the surface point of every pixel.
    """

    def __init__(self, figures: Figures) -> None:
        self.figures = figures

    def correspond(self, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Row and column in the source of each pixel of the target (h, w, 2), and where copyable.

        Copyable is what the source shows within 1.6 % of the body's height, 2 pixels of 128.
        """
        part, local = self.figures.part, self.figures.local
        found = correspondence(part[source], local[source], part[target], local[target])
        return np.stack([found.row, found.column], axis=-1), found.copyable

    def on_person(self, picture: int) -> np.ndarray:
        """Where the person is, (h, w) of bool."""
        return np.array(self.figures.part[picture] > 0)


def open_truth(folder: Path, split: str) -> Truth | None:
    """The truth of a folder, if it is one of figures that have it."""
    if not (folder / "figures.json").is_file():
        return None
    figures = Figures(folder, split)
    return Truth(figures) if figures.options["truth"] else None
