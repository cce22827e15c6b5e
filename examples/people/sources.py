"""Open any of the data by its folder, whose files say what it is."""

from pathlib import Path

from examples.people.deepfashion import SPLITS, annotation_list, open_deepfashion
from examples.people.figures.cache import Figures
from examples.people.pictures import Arrays, Pictures
from examples.people.pointfiles import has_points
from examples.people.singles import open_singles
from examples.people.stored import ABOUT, open_stored

KINDS = "figures, stored pictures, DeepFashion, single pictures or clips"


def open_pictures(folder: Path, split: str, size: tuple[int, int] = (256, 256)) -> Pictures:
    """Open the pictures of people in a folder.

    Args:
        folder: Figures rendered ahead, stored pictures, DeepFashion, single pictures or clips: the
            module of each says which files those are.
        split: Which part. For stored, single pictures and clips that is a folder inside `folder`;
            where there is none, all is "train".
        size: Height and width to bring the pictures to; figures and stored pictures keep theirs.

    Raises:
        ValueError: The folder is none of these, has no such split or nothing that can be used.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if (folder / "figures.json").is_file() or (folder / "started.json").is_file():
        figures = Figures(folder, split)
        return Arrays(figures.images, figures.points, figures.pairs)
    if any(annotation_list(folder, each).is_file() for each in SPLITS):
        return open_deepfashion(folder, split, size)
    return _open_part(_part(folder, split), size)


def _part(folder: Path, split: str) -> Path:
    if (folder / split).is_dir():
        return folder / split
    if split != "train" or (folder / "test").is_dir():
        raise ValueError(f"{folder} has no folder {split}")
    return folder


def _open_part(folder: Path, size: tuple[int, int]) -> Pictures:
    if (folder / ABOUT).is_file():
        return open_stored(folder)
    if has_points(folder):
        return open_singles(folder, size)
    if any(has_points(inner) for inner in folder.iterdir() if inner.is_dir()):
        from examples.people.clips import open_clips  # needs PyAV

        return open_clips(folder, size)
    raise ValueError(f"{folder} holds none of {KINDS}")
