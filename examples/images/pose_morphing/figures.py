"""The paper's figures in small: `python -m examples.images.pose_morphing.figures 7 9`, or `all`.

    5a   error of each attention against its memory
    5b   what each makes, and where it errs
    6    held-out people in new poses
    7    the same network reading more and more key blocks
    8    GPA against Nystromformer
    9    where pixels are read
    10   a source from a foreign domain, a photograph

They come from what is committed: the networks that ship, and results/ablation. People are drawn
whom no network was trained on. (The paper's Figure 11 is another of the kind of 7.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from examples.common.commands import command
from examples.common.files import check_folder
from examples.images.pose_morphing.evaluate import render
from examples.images.pose_morphing.losses import TextureEnergy
from examples.images.pose_morphing.measures.report import contact_sheet, skeleton
from examples.images.pose_morphing.measures.sheet import as_pictures, draw_sheet, save_picture
from examples.images.pose_morphing.measures.tasks import pair_task
from examples.images.pose_morphing.morph import maps_of
from examples.images.pose_morphing.studies import lines
from examples.images.pose_morphing.studies.ablation_report import (
    draw_memory,
    read_runs,
    read_shown,
    save,
    write_errors,
)
from examples.images.pose_morphing.studies.memory import level_bytes
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures.cache import Options as FigureOptions, build
from examples.people.keypoints import NAMES, NOBODY
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures

HERE = Path(__file__).parent
GPA, NONE = HERE / "checkpoints/gpa", HERE / "checkpoints/none"
ABLATION = HERE / "results/ablation"
PIVOT, RIVAL = "GPA128_4_8", "NYF32_8"
KAPPAS = (1, 2, 4, 8, 16)
SEED = 1  # of people; training has those of seed 0
ROWS = 4
MEASURED = 16  # pairs whose texture distance is averaged
PHOTO_POINTS = {  # x, y in the 512 pixels of the photograph, found by eye
    **{"nose": (223, 120), "neck": (215, 235), "rsho": (95, 270), "relb": (50, 430)},
    **{"lsho": (330, 280), "reye": (203, 100), "leye": (246, 103)},
    **{"rear": (175, 115), "lear": (275, 118)},
}
PHOTO_SCALE, PHOTO_TOP = 8, 10  # pixels of the photograph in one of ours; rows above it


@dataclass(frozen=True)
class Options:
    """Draw figures of the paper."""

    figures: tyro.conf.Positional[tuple[str, ...]]
    out: Path = HERE / "results/figures"
    people: Path = Path("runs/figures_of_the_paper")  # where people are drawn first


def main(options: Options) -> None:
    """Draw each figure that is asked for.

    Raises:
        ValueError: There is no figure of that number, or no run that it could come from.
    """
    asked = tuple(FIGURES) if options.figures == ("all",) else options.figures
    for name in asked:
        if name not in FIGURES:
            raise ValueError(f"no figure {name!r}; expected all or some of {', '.join(FIGURES)}")
    check_folder(options.out)
    for name in asked:
        FIGURES[name](options)


def people(options: Options) -> Pictures:
    """Draw people whom no network was trained on, if they are not there."""
    build(options.people, FigureOptions((128, 64), identities=30, poses=3, seed=SEED))
    return open_pictures(options.people, "train")


def figure_5a(options: Options) -> None:
    runs = read_runs(ABLATION / "runs")
    save(options.out / "figure5a.png", lambda axes: draw_memory(axes, runs))


def figure_5b(options: Options) -> None:
    write_errors(ABLATION / "pictures", options.out / "figure5b.png")


def figure_6(options: Options) -> None:
    task = pair_task(people(options), ROWS, seed=6)
    device = torch.device("cpu")
    made = {
        name: render(load_trained(path).generator, task, device).images
        for name, path in (("GPA", GPA), ("none", NONE))
    }
    save_picture(contact_sheet(task, made, ROWS), options.out / "figure6.jpg")


def figure_7(options: Options) -> None:
    """Show one network that reads more and more key blocks, with what that gives and costs."""
    task = pair_task(people(options), MEASURED, seed=11)
    columns = {}
    for kappa in KAPPAS:
        generator = load_trained(GPA, kappa).generator
        images = render(generator, task, torch.device("cpu")).images
        distance = TextureEnergy()(images.clamp(-1, 1), task.batch.truth).item()
        memory = sum(level_bytes(generator, task, torch.device("cpu")).values()) / 1e6
        columns[f"{kappa}: {distance:.4f}, {memory:.0f} MB"] = images
    save_picture(contact_sheet(task, columns, ROWS), options.out / "figure7.jpg")


def figure_8(options: Options) -> None:
    """Show GPA beside Nystromformer, after equal time of training."""
    shown = read_shown(ABLATION / "pictures")
    columns = {name: as_pictures(shown[name]) for name in ("truth", PIVOT, RIVAL)}
    save_picture(draw_sheet(columns), options.out / "figure8.jpg")


def figure_9(options: Options) -> None:
    people(options)
    out = options.out / "figure9.png"
    lines.main(lines.Options("0", "1", GPA, options.people, "train", out=out))


def figure_10(options: Options) -> None:
    """Put the person of a photograph into poses of drawn people."""
    pictures = people(options)
    source, points = photograph(pictures.size)
    generator = load_trained(GPA).generator
    poses = np.array(pictures.points[:ROWS])
    with torch.no_grad():
        made = [
            generator(source, maps_of(points, pictures.size), maps_of(pose, pictures.size)).image
            for pose in poses
        ]
    shown = {
        "source": as_pictures(source) * ROWS,
        "its pose": [skeleton(points, pictures.size)] * ROWS,
        "pose": [skeleton(pose, pictures.size) for pose in poses],
        "GPA": as_pictures(torch.cat(made)),
    }
    save_picture(draw_sheet(shown), options.out / "figure10.jpg")


def photograph(size: tuple[int, int]) -> tuple[Float[Tensor, "1 3 h w"], Float[np.ndarray, "18 3"]]:
    """Return the astronaut of scikit-image as a person of our pictures, with her key points."""
    image = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    image = torch.nn.functional.avg_pool2d(image, PHOTO_SCALE)
    height, width = image.shape[2:]
    below = size[0] - PHOTO_TOP - height
    image = torch.nn.functional.pad(image, (0, size[1] - width, PHOTO_TOP, below), "replicate")
    points = NOBODY.copy()
    for name, (x, y) in PHOTO_POINTS.items():
        place = x / PHOTO_SCALE - 0.5, y / PHOTO_SCALE - 0.5 + PHOTO_TOP
        points[NAMES.index(name)] = (*place, 1)
    return image, points


FIGURES: dict[str, Callable[[Options], None]] = {
    "5a": figure_5a,
    "5b": figure_5b,
    "6": figure_6,
    "7": figure_7,
    "8": figure_8,
    "9": figure_9,
    "10": figure_10,
}


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
