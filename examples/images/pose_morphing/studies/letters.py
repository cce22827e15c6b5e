"""Can prints still be read? Held-out pairs drawn at random, each print beside its truth, enlarged.

    python -m examples.images.pose_morphing.studies.letters --data data/large --model runs/grow

A print is letters on a chest or a number on a back. It counts if the source shows nearly all that
the target shows of it, and both show a good part. In frontal pairs it faces the viewer in both; in
turned ones it is turned away by 30 degrees or more in one of them, by 65 at most in both. Writes a
sheet of each kind, to be read by eye, and letters.json with what is written.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch
import tyro
from jaxtyping import Bool
from tqdm import tqdm

from examples.common.commands import check_count, check_seed, command
from examples.common.files import check_folder, write_json
from examples.images.pose_morphing.data import paired
from examples.images.pose_morphing.demo import SHIPPED
from examples.images.pose_morphing.evaluate import check_fit
from examples.images.pose_morphing.measures.sheet import (
    Picture,
    as_pictures,
    draw_sheet,
    save_picture,
    side_by_side,
)
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.trained import load_trained
from examples.people import open_pictures
from examples.people.figures import prints
from examples.people.figures.cache import Figures
from examples.people.figures.camera import FIGURE
from examples.people.figures.clothes import Looks
from examples.people.figures.render import looks_of, render
from examples.people.figures.truth import Truth
from examples.people.geometry import Box, box_around, cut
from examples.people.pictures import People

FACING = {"chest": 0.0, "back": math.pi}  # the turn of a body whose print faces the viewer
NEAR, FAR = math.radians(30), math.radians(65)
KINDS = ("frontal", "turned")
COPYABLE = 0.97  # of a print's pixels in the target, at least: or a letter is not in the source
LARGE = 0.5  # of the pixels that the print has when it faces the viewer, at least, in both pictures
WHITE = 60  # of 255: the least of what a print adds to a pixel that is more than half of it
ROWS = 5  # of a block
ROOM = 0.2  # around a print, as a part of its longer side


@dataclass(frozen=True)
class Options:
    """What is read, of what."""

    data: Path  # a folder of drawn figures with their truth, of the generator's size
    model: Path = SHIPPED / "gpa128"
    out: Path = Path("runs/letters")
    split: str = "test"
    pairs: int = 10  # of each kind
    seed: int = 77
    form: Literal["png", "jpg", "webp"] = "png"  # of the sheets


@dataclass(frozen=True)
class Reading:
    """A print on the clothes of a pair: the rows of its pictures in the split, what is written."""

    source: int
    target: int
    where: str
    words: str
    kind: str


def main(options: Options) -> None:
    """Draw the pairs, render them, write the sheets.

    Raises:
        ValueError: The data has no truth, too few such pairs, or is not of the model's size.
    """
    check_folder(options.out)
    check_count("--pairs", options.pairs)
    check_seed(options.seed)
    trained = load_trained(options.model)
    generator = trained.generator
    figures = Figures(options.data, options.split)
    pictures = open_pictures(options.data, options.split, generator.config.size)
    check_fit(str(options.model), trained, pictures)
    found = drawn(figures, options)
    for kind, readings in found.items():
        sources, targets = np.array([pair_of(each) for each in readings]).T
        people = pictures.at(sources), pictures.at(targets)
        columns = columns_of(generator, figures, people, readings)
        save_picture(in_blocks(columns), options.out / f"{kind}.{options.form}")
    said = {kind: [asdict(each) for each in readings] for kind, readings in found.items()}
    write_json(options.out / "letters.json", said)


def drawn(figures: Figures, options: Options) -> dict[str, list[Reading]]:
    """Go through the pairs in random order until there are enough prints of each kind."""
    if not figures.options["truth"]:
        raise ValueError(f"{options.data} holds figures without their truth")
    truth = Truth(figures)
    found: dict[str, list[Reading]] = {kind: [] for kind in KINDS}
    order = np.random.default_rng(options.seed).permutation(len(figures.pairs))
    progress = tqdm(total=options.pairs * len(KINDS), desc="prints", disable=None)
    for source, target in figures.pairs[order].tolist():
        for reading in readings_of(figures, source, target):
            if len(found[reading.kind]) < options.pairs and is_shown(figures, truth, reading):
                found[reading.kind].append(reading)
                progress.update()
        if all(len(each) == options.pairs for each in found.values()):
            return found
    few = " and ".join(f"{len(each)} {kind}" for kind, each in found.items())
    raise ValueError(f"{options.data} has {few} pairs with a print; {options.pairs} are wanted")


def readings_of(figures: Figures, source: int, target: int) -> list[Reading]:
    """List the prints of a pair that are frontal or turned, whether they can be seen or not."""
    turns = figures.yaw[[source, target]]
    found = []
    for where, text in looks_at(figures, source).prints.items():
        turned = np.abs((turns - FACING[where] + math.pi) % (2 * math.pi) - math.pi).max()
        if turned < FAR:
            found.append(Reading(source, target, where, text.words, KINDS[int(turned >= NEAR)]))
    return found


def pair_of(reading: Reading) -> tuple[int, int]:
    return reading.source, reading.target


def is_shown(figures: Figures, truth: Truth, reading: Reading) -> bool:
    """Tell whether both pictures show enough of the print, and the source what the target shows."""
    there, here = (print_at(figures, i, reading.where) for i in pair_of(reading))
    height, width = looks_at(figures, reading.source).prints[reading.where].size
    facing = height * width * (FIGURE / 2) ** 2  # two texels a pixel of a figure's height
    if min(here.sum(), there.sum()) < LARGE * facing:
        return False
    _, copyable = truth.correspond(*pair_of(reading))
    return bool(copyable[here].mean() >= COPYABLE)


def print_at(figures: Figures, picture: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Find the pixels of a print: those that are brighter when it is white than when it is not."""
    looks, options = looks_at(figures, picture), figures.options
    text, size = looks.prints[where], tuple(options["size"])
    black = {part: np.zeros_like(texture) for part, texture in looks.textures.items()}
    white = prints.stamp(black["trunk"], text.centre, text.size, whitened)
    without, with_print = (
        render(
            replace(looks, textures=textures), *person_of(figures, picture), size, options["seed"]
        ).image.astype(int)
        for textures in (black, black | {"trunk": white})
    )
    return (with_print - without).min(axis=-1) > WHITE


def whitened(canvas: prints.Draw, height: int, width: int) -> None:
    canvas.rectangle((0, 0, width, height), fill=(255, 255, 255))


@lru_cache(maxsize=64)
def looks_at(figures: Figures, picture: int) -> Looks:
    """Draw again what the person of a picture looks like."""
    options, (identity, _) = figures.options, person_of(figures, picture)
    return looks_of(identity, tuple(options["size"]), options["seed"], options["photos"])


def person_of(figures: Figures, picture: int) -> tuple[int, int]:
    """Say which identity in which pose a picture of the split is."""
    person, pose = divmod(picture, figures.options["poses"])
    return figures.identities[person], pose


def columns_of(
    generator: Generator,
    figures: Figures,
    people: tuple[People, People],
    readings: list[Reading],
) -> dict[str, list[Picture]]:
    """Render sources in the poses of targets; make columns of each print above its picture."""
    sources, targets = people
    made = rendered(generator, sources, targets)
    width = generator.config.size[1]
    columns: dict[str, list[Picture]] = {"source": [], "result": [], "truth": []}
    for i, reading in enumerate(readings):
        there, here = (box_of(print_at(figures, x, reading.where)) for x in pair_of(reading))
        row = (sources.images[i], there), (made[i], here), (targets.images[i], here)
        for column, (picture, box) in zip(columns.values(), row, strict=True):
            column.append(np.concatenate([cut(picture, box, (width, width)), picture]))
    return columns


def in_blocks(columns: dict[str, list[Picture]]) -> PIL.Image.Image:
    """Draw the columns in blocks of rows, side by side."""
    count = len(columns["truth"])
    return side_by_side(
        [
            draw_sheet({name: each[i : i + ROWS] for name, each in columns.items()}, enlarged=1)
            for i in range(0, count, ROWS)
        ]
    )


@torch.no_grad()
def rendered(generator: Generator, sources: People, targets: People) -> list[Picture]:
    """Bring each source into the pose of its target, one at a time."""
    batch = paired(sources, targets, torch.device("cpu"))
    inputs = zip(*(x.split(1) for x in (batch.source, batch.source_maps, batch.target_maps)))
    return as_pictures(torch.cat([generator(*each).image for each in inputs]))


def box_of(mask: Bool[np.ndarray, "h w"]) -> Box:
    """Return the square around what is True, with some room."""
    (top, left), (bottom, right) = (
        np.argwhere(mask).min(axis=0),
        np.argwhere(mask).max(axis=0) + 1,
    )
    room = ROOM * max(bottom - top, right - left)
    return box_around((left - room, top - room, right + room, bottom + room), (1, 1))


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
