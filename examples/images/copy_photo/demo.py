"""Restore held-out photographs by copying from a sharp reference, with several attentions.

    .venv/bin/python -m examples.images.copy_photo               under three minutes, two cores
    .venv/bin/python -m examples.images.copy_photo --image PATH

Writes into `runs/copy_photo`: picture.png, table.md, table.json, checkpoint.safetensors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import locked
from examples.common.files import check_folder
from examples.images.copy_photo.data import (
    HELD_OUT,
    held_out_view,
    load_photo,
    make_task,
    random_theta,
    read_photo,
)
from examples.images.copy_photo.model import CopyNet
from examples.images.copy_photo.picture import write_picture
from examples.images.copy_photo.report import Case, write_tables
from examples.images.copy_photo.restore import Method, enlarged, resampled, restore
from examples.images.copy_photo.train import FACTOR, Training, trained
from ndgpa import GPA, Full, Image
from ndgpa.operators import NoAttention


@dataclass(frozen=True)
class Options:
    """Restore held-out photographs by copying from a sharp reference."""

    image: Path | None = None
    """A photograph of your own, restored in place of the held-out ones."""
    out: Path = Path("runs/copy_photo")
    """Folder of the results and of the checkpoint."""
    retrain: bool = False
    """Train anew, though there is a checkpoint."""
    smoke: bool = False
    """A few steps on small pictures: shows that the program runs, not that it works."""


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    photos = _photos(options.image)
    check_folder(options.out)
    training, sizes, checkpoint = Training(), (256, 512), options.out / "checkpoint.safetensors"
    if options.smoke:
        training = Training(size=64, match_steps=2, copy_steps=2)
        sizes, photos = (64,), dict(list(photos.items())[:1])
        checkpoint = options.out / "smoke.safetensors"
    with locked(options.out):
        nets = trained(training, checkpoint, options.retrain)
    cases = _restored(photos, sizes, training, nets)
    write_picture(options.out / "picture.png", cases)
    print(write_tables(options.out, cases))
    print(f"The picture is {options.out / 'picture.png'}.")


def methods(training: Training, size: int, nets: dict[str, CopyNet]) -> list[Method]:
    """List all that is compared; GPA is one network for every kappa."""
    fine = Image((size, size), training.downsample, training.cell)
    low = size // training.full_factor
    coarse = Image((low, low), training.downsample, training.cell)
    return [
        Method("no attention", nets["nothing"], fine, NoAttention()),
        Method(f"full at {low}x{low}", nets["full"], coarse, Full(scale=1.0)),
        *(Method(f"GPA {k}", nets["gpa"], fine, GPA(k, scale=1.0)) for k in training.kappas),
    ]


def _photos(image: Path | None) -> dict[str, Tensor]:
    """Read the photographs to restore, by name."""
    if image is not None:
        return {image.stem: read_photo(image)}
    return {name: load_photo(name) for name in HELD_OUT}


def _restored(
    photos: dict[str, Tensor],
    sizes: tuple[int, ...],
    training: Training,
    nets: dict[str, CopyNet],
) -> list[Case]:
    """Restore every photograph at every size with every method, under one distortion each."""
    cases = []
    for size in sizes:
        for number, (name, photo) in enumerate(photos.items()):
            theta = random_theta(1, torch.Generator().manual_seed(7 + number))
            task = make_task(held_out_view(photo, size)[None], theta, FACTOR)
            bar = tqdm(methods(training, size, nets), desc=f"restore {name} at {size}")
            results = [enlarged(task), *(restore(method, task) for method in bar)]
            cases.append(Case(name, task, results, resampled(nets["gpa"], task)))
    return cases
