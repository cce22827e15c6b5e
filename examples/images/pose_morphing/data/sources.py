"""Any of the data by name."""

from pathlib import Path
from typing import Literal

from examples.images.pose_morphing.data.deepfashion import open_deepfashion
from examples.images.pose_morphing.data.figures.cache import Figures
from examples.images.pose_morphing.data.pictures import Arrays, Pictures
from examples.images.pose_morphing.data.singles import open_singles
from examples.images.pose_morphing.data.stored import open_stored

Kind = Literal["figures", "deepfashion", "clips", "singles", "stored"]


def open_pictures(kind: Kind, root: Path, size: tuple[int, int], split: str = "train") -> Pictures:
    """Pictures of people.

    Args:
        kind: What `root` holds; see the file of that name.
        root: A folder. Of clips and singles a split is a folder of its own.
        size: Height and width.
        split: "train" or "test"; of figures "validation" too.

    Raises:
        ValueError: Nothing in the folder can be used.
    """
    if kind == "figures":
        return fitting(root, size, open_figures(root, split))
    if kind == "deepfashion":
        return open_deepfashion(root, split, size)
    if kind == "clips":
        from examples.images.pose_morphing.data.clips import open_clips  # needs PyAV

        return open_clips(root, size)
    if kind == "singles":
        return open_singles(root, size)
    return fitting(root, size, open_stored(root))


def open_figures(root: Path, split: str) -> Arrays:
    """One split of a folder of rendered figures, without their truth."""
    figures = Figures(root, split)
    return Arrays(figures.images, figures.points, figures.pairs)


def fitting(root: Path, size: tuple[int, int], pictures: Arrays) -> Arrays:
    """The pictures, which have a size already; it has to be the one that is wanted."""
    if pictures.size != size:
        raise ValueError(f"{root} holds pictures of {pictures.size} pixels; expected {size}")
    return pictures
