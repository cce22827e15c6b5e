"""How well do key points say which place of the body a pixel shows, and what does sight add?

    python -m examples.images.pose_morphing.studies.ambiguity --data data/large

`surface.py` tells for each pixel of a picture, from key points alone, the part of the body and the
point of its surface. Each copyable pixel of a person in the target is looked up in the source: the
pixel of the same part whose surface point is the nearest. With the true parts and points of both
that finds the true place; with those that were told it is off by as much as key points leave open.
The generator starts from what was told, sees the source, and is off by what is left. Writes
ambiguity.json and ambiguity.md: distances in pixels of the data, here and in quality.md alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, check_seed, command
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing.body import grid
from examples.images.pose_morphing.data import paired
from examples.images.pose_morphing.demo import SHIPPED
from examples.images.pose_morphing.figures import HERE
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.studies.quality import keys_of
from examples.images.pose_morphing.surface import SPREAD, Surface
from examples.images.pose_morphing.train_surface import scaled
from examples.images.pose_morphing.trained import load_trained
from examples.people import open_pictures
from examples.people.figures.cache import Figures
from examples.people.figures.truth import Truth

NEAR_PX = (3, 6)
Shown = tuple[Int[Tensor, " hw"], Float[Tensor, "hw 3"]]  # the part and the point of every pixel


@dataclass(frozen=True)
class Options:
    """What is asked, of what."""

    data: Path  # a folder of drawn figures with their truth, of the generator's size
    model: Path = SHIPPED / "gpa256"
    out: Path = HERE / "results" / "large"
    split: str = "test"
    pairs: int = 96
    pixels: int = 300  # of each pair
    seed: int = 77


@dataclass(frozen=True)
class Asked:
    """Copyable pixels of a target, and where the source shows the same."""

    source: int  # pictures of the split
    target: int
    pixels: Int[Tensor, " p"]
    places: Int[Tensor, "p 2"]  # row, column


def main(options: Options) -> None:
    """Look up and write.

    Raises:
        ValueError: The data has no truth, or the model no surface.
    """
    check_folder(options.out)
    for name in ("pairs", "pixels"):
        check_count(f"--{name}", getattr(options, name))
    check_seed(options.seed)
    generator = load_trained(options.model).generator
    surface = next((x for x in generator.modules() if isinstance(x, Surface)), None)
    if surface is None:
        raise ValueError(f"{options.model} is a network that was not told of surfaces")
    figures = Figures(options.data, options.split)
    if not figures.options["truth"]:
        raise ValueError(f"{options.data} holds figures without their truth")
    shown: dict[str, Callable[[int], Shown]] = {
        "true parts and points": lambda picture: true(figures, picture),
        "true parts, points as told": lambda picture: (
            true(figures, picture)[0],
            told(figures, picture, surface, true(figures, picture)[0])[1],
        ),
        "parts and points as told": lambda picture: told(figures, picture, surface),
    }
    asked = list(questions(figures, options))
    ways = {name: looked_up(asked, of) for name, of in shown.items()}
    ways["the generator's strongest key"] = attended(asked, generator, options)
    width = figures.part.shape[2]
    rows = {name: summary(asked, found, width) for name, found in ways.items()}
    said = {"machine": machine(), "data": figures.options, "pairs": len(asked), "rows": rows}
    write_json(options.out / "ambiguity.json", said)
    write_text(options.out / "ambiguity.md", as_markdown(rows, len(asked)))


def questions(figures: Figures, options: Options) -> Iterator[Asked]:
    """Draw pairs, those of `quality.py`, and pixels of each target."""
    draws, truth = np.random.default_rng(options.seed), Truth(figures)
    order = draws.permutation(len(figures.pairs))[: options.pairs]
    for source, target in figures.pairs[order].tolist():
        places, copyable = truth.correspond(source, target)
        on_person = np.flatnonzero(copyable & truth.on_person(target))
        if len(on_person):
            pixels = draws.choice(on_person, options.pixels)
            where = torch.from_numpy(places.reshape(-1, 2)[pixels]).long()
            yield Asked(source, target, torch.from_numpy(pixels), where)


def true(figures: Figures, picture: int) -> Shown:
    part = torch.from_numpy(np.array(figures.part[picture])).flatten().long()
    points = torch.from_numpy(np.array(figures.local[picture], np.float32))
    return part, points.flatten(0, 1)


@torch.no_grad()
def told(
    figures: Figures, picture: int, surface: Surface, part: Int[Tensor, " hw"] | None = None
) -> Shown:
    """Tell parts, unless they are given, and the points of those parts."""
    size = figures.part[picture].shape
    points = scaled(torch.from_numpy(np.array(figures.points[picture])), size)[None]
    logits, places = surface(points, *(x.reshape(1, -1) for x in grid(size, points)))
    part = logits[0].argmax(dim=1) if part is None else part
    return part, SPREAD * places[0, torch.arange(len(part)), part]


def looked_up(asked: list[Asked], shown: Callable[[int], Shown]) -> Iterator[Int[Tensor, " p"]]:
    """Find for each pixel that of the source, of the same part, whose point is nearest."""
    for each in tqdm(asked, "pairs", disable=None):
        (part, points), (wanted, place) = shown(each.source), shown(each.target)
        other = part != wanted[each.pixels][:, None]
        distance = torch.cdist(place[each.pixels], points)
        yield distance.masked_fill(other, torch.inf).argmin(dim=1)


@torch.no_grad()
def attended(
    asked: list[Asked], generator: Generator, options: Options
) -> Iterator[Int[Tensor, " p"]]:
    """Find what the generator trusts most, at its finest level."""
    pictures = open_pictures(options.data, options.split, generator.config.size)
    for each in tqdm(asked, "generator", disable=None):
        people = (pictures.at(np.array([picture])) for picture in (each.source, each.target))
        pair = paired(*people, torch.device("cpu"))
        morph = generator(pair.source, pair.source_maps, pair.target_maps)
        yield keys_of(morph, 0, each.pixels, each.places)[0]


def summary(asked: list[Asked], found: Iterator[Int[Tensor, " p"]], width: int) -> dict[str, float]:
    """Say how far the places that were found are off."""
    off = torch.cat([distances(each, keys, width) for each, keys in zip(asked, found, strict=True)])
    shares = {f"within {px} px": (off <= px).float().mean().item() for px in NEAR_PX}
    return {"median px": off.median().item(), **shares}


def distances(asked: Asked, keys: Int[Tensor, " p"], width: int) -> Float[Tensor, " p"]:
    at = torch.stack([keys // width, keys % width], dim=1)
    return (at - asked.places).float().norm(dim=1)


def as_markdown(rows: dict[str, dict[str, float]], pairs: int) -> str:
    heads = ["looked up by", *next(iter(rows.values()))]
    lines = [[name, *(f"{x:.3f}" for x in of.values())] for name, of in rows.items()]
    return f"{__doc__}\n{pairs} pairs. {machine()}.\n\n{markdown_table(heads, lines)}\n"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
