"""One person for the commands that render one picture: a held-out one by number, or one's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from examples.people.frames import ImageFile
from examples.people.geometry import cut, cut_points, person_box
from examples.people.pictures import Pictures
from examples.people.pointfiles import OPENPOSE, read_points
from examples.people.posture import far_points

LEAST = 0.3  # confidence that a key point must exceed


@dataclass(frozen=True)
class Person:
    """A picture of the generator's size, and the key points in it."""

    image: UInt8[np.ndarray, "h w 3"]
    points: Float[np.ndarray, "18 3"]

    @property
    def pixels(self) -> Float[Tensor, "1 3 h w"]:
        """Scale the picture to the range from -1 to 1."""
        return rearrange(torch.from_numpy(self.image), "h w c -> 1 c h w").float() / 127.5 - 1


def find_person(text: str, pictures: Pictures | None, size: tuple[int, int]) -> Person:
    """Find the person that the command line names.

    Args:
        text: A number, of `pictures`; or a picture's file, beside which a JSON file of the same
            name has its key points as `data/pointfiles.py` says. The picture is cut around them.
        pictures: None if no data was given.
        size: Height and width of the generator.

    Raises:
        ValueError: There is no such picture, or it has no key points.
    """
    if text.isdecimal():
        return numbered(int(text), pictures)
    path = Path(text)
    points = points_beside(path)
    image = ImageFile(path).read()
    for off in far_points(points[None], np.array([image.shape[:2]])).values():
        raise ValueError(f"{path}: {off}")
    box = person_box(points, size)
    return Person(cut(image, box, size), cut_points(points, box, size))


def find_pose(
    text: str, pictures: Pictures | None, size: tuple[int, int]
) -> Float[np.ndarray, "18 3"]:
    """Find the key points that the command line names: as `find_person`, or a JSON file alone."""
    if not text.endswith(".json"):
        return find_person(text, pictures, size).points
    points = read_one(Path(text))
    return cut_points(points, person_box(points, size), size)


def numbered(number: int, pictures: Pictures | None) -> Person:
    if pictures is None:
        raise ValueError(f"{number} is the number of a picture, but no --data was given")
    if number >= len(pictures):
        raise ValueError(f"there is no picture {number}; there are {len(pictures)}, from 0")
    return Person(pictures.image(number), np.array(pictures.points[number], np.float32))


def points_beside(path: Path) -> Float[np.ndarray, "18 3"]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    beside, by_openpose = path.with_suffix(".json"), path.with_name(f"{path.stem}{OPENPOSE}")
    if not beside.is_file() and by_openpose.is_file():
        beside = by_openpose
    if not beside.is_file():
        raise ValueError(f"{path} needs the key points of the person in {beside.name} beside it")
    return read_one(beside)


def read_one(path: Path) -> Float[np.ndarray, "18 3"]:
    """Read the points of a file of one frame."""
    file, problems = read_points(path, named=False, least=LEAST)
    if file is None or problems:
        raise ValueError("; ".join(map(str, problems)) or f"{path} holds no key points")
    if len(file.points) != 1 or not (file.points[0, :, 2] > 0).any():
        raise ValueError(f"{path} does not hold the key points of one person")
    return file.points[0]
