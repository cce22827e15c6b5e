"""Render one person in another pose.

    python -m examples.images.pose_morphing.morph 12 40 --model runs/gpa --data FOLDER
    python -m examples.images.pose_morphing.morph me.jpg dancer.json --model runs/gpa

SOURCE and POSE are numbers of held-out pictures of `--data`, or files: a picture with its key
points in a JSON file of the same name beside it; for a pose the JSON file is enough. Such pictures
are cut around the person.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from examples.common.commands import command
from examples.images.pose_morphing.data import to_maps
from examples.images.pose_morphing.measures.report import skeleton
from examples.images.pose_morphing.measures.sheet import (
    as_pictures,
    check_picture_name,
    draw_sheet,
    save_picture,
)
from examples.images.pose_morphing.model import Morph
from examples.images.pose_morphing.trained import load_trained
from examples.people.person import Person, find_person, find_pose
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures


@dataclass(frozen=True)
class Question:
    """What is to be rendered by which generator."""

    source: tyro.conf.Positional[str]  # a number or a file
    pose: tyro.conf.Positional[str]  # a number or a file
    model: Path  # a training run, or one checkpoint's JSON
    data: Path | None = None  # whose pictures the numbers mean
    split: str = "test"
    kappa: int | None = None  # key blocks that GPA reads; None: as in training


@dataclass(frozen=True)
class Options(Question):
    """Render one person in another pose."""

    out: Path = Path("morph.png")
    beside: bool = False  # put the source and the pose beside the result, all enlarged


@dataclass(frozen=True)
class Answer:
    """The morph with what it was made from."""

    source: Person
    points: Float[np.ndarray, "18 3"]  # of the pose
    morph: Morph


def answer(question: Question) -> Answer:
    """Load everything and render.

    Raises:
        ValueError: Something cannot be read or does not fit.
    """
    generator = load_trained(question.model, question.kappa).generator
    size = generator.config.size
    pictures = None
    if question.data is not None:
        pictures = fitting(open_pictures(question.data, question.split, size), size)
    source = find_person(question.source, pictures, size)
    points = find_pose(question.pose, pictures, size)
    with torch.no_grad():
        morph = generator(source.pixels, maps_of(source.points, size), maps_of(points, size))
    return Answer(source, points, morph)


def fitting(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    """Return the pictures if they are of the generator's size."""
    if pictures.size != size:
        raise ValueError(f"the data has pictures of {pictures.size} pixels, the model {size}")
    return pictures


def maps_of(points: Float[np.ndarray, "18 3"], size: tuple[int, int]) -> Float[Tensor, "1 18 h w"]:
    """Draw heat maps for the generator."""
    return to_maps(points[None], size, torch.device("cpu"))


def main(options: Options) -> None:
    check_picture_name(options.out)
    found = answer(options)
    result = as_pictures(found.morph.image)
    picture = PIL.Image.fromarray(result[0])
    if options.beside:
        pose = skeleton(found.points, result[0].shape[:2])
        picture = draw_sheet({"source": [found.source.image], "pose": [pose], "result": result})
    save_picture(picture, options.out)
    print(f"{options.out} shows {options.source} in the pose of {options.pose}")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
