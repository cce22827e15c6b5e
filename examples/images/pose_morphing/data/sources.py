"""Opening any of the data by its folder, whose files say what it is."""

from pathlib import Path

<<<<<<< HEAD
from examples.images.pose_morphing.data.deepfashion import open_deepfashion
from examples.images.pose_morphing.data.figures.cache import Figures
from examples.images.pose_morphing.data.pictures import Arrays, Pictures
=======
from examples.images.pose_morphing.data.deepfashion import SPLITS, annotation_list, open_deepfashion
from examples.images.pose_morphing.data.figures.cache import Figures
from examples.images.pose_morphing.data.pictures import Arrays, Pictures
from examples.images.pose_morphing.data.pointfiles import has_points
>>>>>>> datasets
from examples.images.pose_morphing.data.singles import open_singles
from examples.images.pose_morphing.data.stored import ABOUT, open_stored

<<<<<<< HEAD
Kind = Literal["figures", "deepfashion", "clips", "singles", "stored"]
=======
KINDS = "figures, stored pictures, DeepFashion, single pictures or clips"
>>>>>>> datasets


def open_pictures(folder: Path, split: str, size: tuple[int, int] = (256, 256)) -> Pictures:
    """Pictures of people.

    Args:
<<<<<<< HEAD
        kind: What `root` holds; see the file of that name.
        root: A folder. Of clips and singles a split is a folder of its own.
        size: Height and width.
        split: "train" or "test"; of figures "validation" too.
=======
        folder: Figures rendered ahead, stored pictures, DeepFashion, single pictures or clips: the
            module of each says which files those are.
        split: Which part. For stored, single pictures and clips that is a folder inside `folder`;
            where there is none, all is "train".
        size: Height and width to bring the pictures to; figures and stored pictures keep theirs.
>>>>>>> datasets

    Raises:
        ValueError: The folder is none of these, has no such split or nothing that can be used.
    """
<<<<<<< HEAD
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
=======
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
        from examples.images.pose_morphing.data.clips import open_clips  # needs PyAV

        return open_clips(folder, size)
    raise ValueError(f"{folder} holds none of {KINDS}")
>>>>>>> datasets
