"""Any of the data by name."""

from pathlib import Path
from typing import Literal

from examples.images.pose_morphing.data.deepfashion import open_deepfashion
from examples.images.pose_morphing.data.pictures import Pictures
from examples.images.pose_morphing.data.singles import open_singles
from examples.images.pose_morphing.data.stored import open_stored

Kind = Literal["deepfashion", "clips", "singles", "stored"]


def open_pictures(kind: Kind, root: Path, size: tuple[int, int], split: str = "train") -> Pictures:
    """Pictures of people.

    Args:
        kind: What `root` holds; see the file of that name.
        root: A folder. Of clips and singles a split is a folder of its own.
        size: Height and width.
        split: Of DeepFashion, "train" or "test".

    Raises:
        ValueError: Nothing in the folder can be used.
    """
    if kind == "deepfashion":
        return open_deepfashion(root, split, size)
    if kind == "clips":
        from examples.images.pose_morphing.data.clips import open_clips  # needs PyAV

        return open_clips(root, size)
    if kind == "singles":
        return open_singles(root, size)
    stored = open_stored(root)
    if stored.size != size:
        raise ValueError(f"{root} holds pictures of {stored.size}; expected {size}")
    return stored
