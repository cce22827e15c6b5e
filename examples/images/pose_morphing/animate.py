"""Move one person: a picture through a sequence of poses, as MP4 and GIF.

    python -m examples.images.pose_morphing.animate                     # a drawn stranger walks
    python -m examples.images.pose_morphing.animate --source me.jpg --poses dance.json

`--source` is a picture with its key points in a JSON file of the same name beside it; `--poses`
has the key points of many frames, in any form that `people/pointfiles.py` knows, a folder of
OpenPose's files too. Without them a drawn figure whom no network saw walks, and since its true
frames are known, flicker is measured: how much the change from frame to frame differs from the true
change, over the true change, in pixels where the person is. The table says it for each frame
selected by itself and with `--reuse`, by which each cell also reads the key blocks that it selected
for the frame before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import tyro
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from examples.common.commands import check_count, command
from examples.common.files import check_folder, replacing, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing.demo import SHIPPED, STRANGERS
from examples.images.pose_morphing.measures.scores import l1
from examples.images.pose_morphing.measures.sheet import as_pictures
from examples.images.pose_morphing.measures.tasks import in_unit_range
from examples.images.pose_morphing.model import Generator, selecting
from examples.images.pose_morphing.morph import maps_of
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures.render import draw_figure
from examples.people.figures.walk import walk
from examples.people.geometry import cut_points, person_box
from examples.people.person import LEAST, Person, find_person
from examples.people.pointfiles import read_points
from examples.video.clips import Clip, write_clip
from ndgpa import Problem, Rule, Selection
from ndgpa.functional import as_rule
from ndgpa.selection.base import once

ENLARGED = 4


@dataclass(frozen=True)
class Options:
    """Move one person."""

    source: str | None = None  # a picture; None: a drawn figure
    poses: Path | None = None  # key points of many frames; None: it walks
    model: Path = SHIPPED / "gpa128"
    kappa: int | None = None  # key blocks that GPA reads; None: as in training
    reuse: bool = True  # of the selection of the frame before, in the moving pictures
    out: Path = Path("runs/animation")  # folder of animation.mp4, .gif and, of a figure, flicker.md
    frames: int = 48  # of a walk
    people: int = 4  # drawn figures that flicker is measured on; the first one is shown
    rate: int = 12  # frames a second


@dataclass(frozen=True)
class Sequence:
    """One source and the poses that it is brought into; the truth of a drawn figure."""

    source: Person
    points: Float[np.ndarray, "t 18 3"]
    truth: Float[Tensor, "t 3 h w"] | None = None  # -1 to 1
    person: Float[Tensor, "t h w"] | None = None  # where it is, in any of two frames


@dataclass(eq=False)
class Reuse(Rule):
    """A rule for frames in their order: what it selects for one is read for the next besides."""

    rule: Rule
    before: Selection | None = None

    def select(self, problem: Problem) -> Selection:
        now = self.rule.select(problem)
        parts = [x.blocks for x in (now, self.before) if x is not None]
        self.before = now
        return once(torch.cat(parts, dim=-1), None, problem.key_structure.num_blocks)


def main(options: Options) -> None:
    for name in ("frames", "people", "rate"):
        check_count(f"--{name}", getattr(options, name), most=10_000)
    check_folder(options.out)
    generator = load_trained(options.model, options.kappa).generator
    if options.source is None and options.poses is None:
        size = generator.config.size
        sequences = [walking(person, options.frames, size) for person in range(options.people)]
        measure(generator, sequences, options)
    else:
        sequences = [given(options, generator.config.size)]
    made = render(generator, sequences[0], options.reuse)
    save(sequences[0], made, options)
    print(f"{options.out} has animation.mp4 and animation.gif of {len(made)} frames")


def walking(identity: int, frames: int, size: tuple[int, int]) -> Sequence:
    """A stranger in a pose of its own, and the frames of its walk."""
    first = draw_figure(identity, 0, size, STRANGERS)
    figures = walk(identity, frames, size, STRANGERS)
    images = torch.from_numpy(np.stack([figure.image for figure in figures]))
    person = torch.from_numpy(np.stack([figure.part for figure in figures]) > 0)
    return Sequence(
        Person(first.image, first.points),
        np.stack([figure.points for figure in figures]),
        rearrange(images, "t h w c -> t c h w").float() / 127.5 - 1,
        person,
    )


def given(options: Options, size: tuple[int, int]) -> Sequence:
    """What the command line names.

    Raises:
        ValueError: One of the two is missing, or cannot be read.
    """
    if options.source is None or options.poses is None:
        raise ValueError("--source and --poses go together")
    file, problems = read_points(options.poses, named=False, least=LEAST)
    if file is None or problems:
        raise ValueError("; ".join(map(str, problems)) or f"{options.poses} holds no key points")
    seen = file.points[file.points[..., 2].any(axis=1)]
    if not len(seen):
        raise ValueError(f"{options.poses} holds no key points of anybody")
    box = person_box(seen.reshape(-1, 3), size)  # one for all, so that the person may move
    points = np.stack([cut_points(frame, box, size) for frame in seen])
    return Sequence(find_person(options.source, None, size), points)


@torch.no_grad()
def render(generator: Generator, sequence: Sequence, reuse: bool) -> Float[Tensor, "t 3 h w"]:
    """Render every pose; the source is read once."""
    source, size = sequence.source, generator.config.size
    given = source.pixels, maps_of(source.points, size)
    features = generator.read(*given)
    attentions = selecting(generator)
    operators = [attention.operator for attention in attentions]
    for attention in attentions if reuse else ():
        rule = Reuse(as_rule(attention.operator.rule))
        attention.operator = replace(attention.operator, rule=rule)
    made = [
        generator(*given, maps_of(points, size), features=features).image
        for points in sequence.points
    ]
    for attention, operator in zip(attentions, operators, strict=True):
        attention.operator = operator
    return torch.cat(made)


def measure(generator: Generator, sequences: list[Sequence], options: Options) -> None:
    """Write flicker.json and flicker.md."""
    found: dict[str, dict[str, float]] = {}
    for name, reuse in (("each frame by itself", False), ("with the frame before", True)):
        both = [errors(render(generator, sequence, reuse), sequence) for sequence in sequences]
        means = torch.tensor(both).mean(dim=0).tolist()
        found[name] = dict(zip(("flicker", "error"), means, strict=True))
    rows = [[name, *(f"{x:.4f}" for x in of.values())] for name, of in found.items()]
    table = markdown_table(["selection", "flicker", "L1 to the true frames"], rows)
    about = f"{len(sequences)} figures, {options.frames} frames each. {machine()}."
    write_json(options.out / "flicker.json", {"machine": machine(), "selection": found})
    write_text(options.out / "flicker.md", f"{__doc__}\n{about}\n\n{table}\n")
    print(table)


def errors(made: Float[Tensor, "t 3 h w"], sequence: Sequence) -> tuple[float, float]:
    """Flicker, and the mean error where the person is."""
    assert sequence.truth is not None
    assert sequence.person is not None
    made, truth = in_unit_range(made), in_unit_range(sequence.truth)
    either = sequence.person[1:] | sequence.person[:-1]
    change, true_change = made.diff(dim=0), truth.diff(dim=0)
    flicker = l1(change, true_change, either).sum() / true_change.abs().mean(1)[either].mean()
    return (flicker / len(change)).item(), l1(made, truth, sequence.person).mean().item()


def save(sequence: Sequence, made: Float[Tensor, "t 3 h w"], options: Options) -> None:
    """Write the moving picture, the source beside it, as MP4 and GIF."""
    pictures = list(framed(sequence, made))
    frames = rearrange(torch.from_numpy(np.stack(pictures)), "t h w c -> t c h w")
    clip = Clip(frames, tuple(range(len(frames))), Fraction(1, options.rate))
    write_clip(options.out / "animation.mp4", clip)
    first, *others = map(PIL.Image.fromarray, pictures)
    with replacing(options.out / "animation.gif") as part:
        first.save(
            part,
            format="gif",
            save_all=True,
            append_images=others,
            duration=round(1000 / options.rate),
            loop=0,
        )


def framed(
    sequence: Sequence, made: Float[Tensor, "t 3 h w"]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Source, morph and, where it is known, the truth side by side, enlarged."""
    truths = [] if sequence.truth is None else as_pictures(sequence.truth)
    for number, picture in enumerate(as_pictures(made)):
        beside = [sequence.source.image, picture, *truths[number : number + 1]]
        whole = np.concatenate(beside, axis=1)
        yield whole.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
