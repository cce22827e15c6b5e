"""Judge generators on held-out people: numbers with errors, and pictures to look at.

    python -m examples.images.pose_morphing.evaluate --data FOLDER --out FOLDER \\
        --models gpa=runs/gpa gpa8=runs/gpa@8 no=runs/no

Each model is a name, the folder (or one checkpoint) of a training run and, if wanted, another kappa
than in training. The first is the one whose differences from the others are reported. Writes
evaluation.json, evaluation.md, pairs.png and distortion.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, check_device, check_seed, command
from examples.common.files import check_folder, write_text
from examples.common.frechet import Frechet, frechet_of
from examples.images.pose_morphing.losses import TextureEnergy
from examples.images.pose_morphing.measures.report import (
    Scores,
    as_markdown,
    contact_sheet,
    differences,
    machine,
    summary,
)
from examples.images.pose_morphing.measures.scores import (
    copy_accuracy,
    key_distances,
    l1,
    psnr,
    ssim,
)
from examples.images.pose_morphing.measures.sheet import save_picture
from examples.images.pose_morphing.measures.tasks import (
    Task,
    distortion_task,
    in_unit_range,
    pair_task,
    part_of,
)
from examples.images.pose_morphing.model import Generator, Morph
from examples.images.pose_morphing.perceptual import VGG, Perceptual
from examples.images.pose_morphing.studies.memory import level_bytes
from examples.images.pose_morphing.trained import Trained, load_trained
from examples.people import open_pictures
from examples.people.figures.truth import open_truth
from examples.people.pictures import Pictures

BATCH = 8  # pictures at a time


@dataclass(frozen=True)
class Options:
    """What is judged, on what."""

    data: Path  # a folder that `people.open_pictures` knows
    models: tuple[str, ...]  # name=PATH or name=PATH@KAPPA
    out: Path = Path("runs/evaluation")
    pairs: int = 96
    distortions: int = 48
    seed: int = 77
    shown: int = 8  # rows of a contact sheet
    blocks: int = 1  # of rows, side by side
    form: Literal["png", "jpg", "webp"] = "png"  # of the contact sheets
    split: str = "test"
    perceptual: bool = True  # measure the perceptual distance, which takes the most time
    vgg: Path | None = None  # torchvision's vgg16 weights for it, instead of random ones
    inception: Path | None = None  # Inception-v3 weights, for the Frechet distance
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Rendered:
    """What a generator made of a task."""

    images: Float[Tensor, "n 3 h w"]  # in -1 to 1
    keys: Scores  # of the finest attention; empty without attention


def main(options: Options) -> dict[str, Any]:
    """Judge, write, and return what the JSON file holds.

    Raises:
        ValueError: A model or the data cannot be read, or they do not fit; nothing was written.
    """
    check_options(options)
    models = load_models(options)
    size = next(iter(models.values())).generator.config.size
    pictures = open_pictures(options.data, options.split, size)
    for name, model in models.items():
        check_fit(name, model, pictures)
    perceptual = Perceptual(VGG(options.vgg)) if options.perceptual else None
    frechet = frechet_of(options.inception)
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "vgg": "random weights" if options.vgg is None else options.vgg.name,
        "tasks": {},
    }
    device = torch.device(options.device)
    for name, task in tasks(pictures, options).items():
        rendered = {
            model: render(trained.generator, task, device)
            for model, trained in tqdm(models.items(), desc=name)
        }
        report["tasks"][name] = judged(rendered, task, perceptual, frechet)
        images = {model: found.images for model, found in rendered.items()}
        sheet = contact_sheet(task, images, options.shown, options.blocks)
        save_picture(sheet, options.out / f"{name}.{options.form}")
    report["models"] = {name: facts(model, task, device) for name, model in models.items()}
    write_text(options.out / "evaluation.json", json.dumps(report, indent=1) + "\n")
    write_text(options.out / "evaluation.md", as_markdown(report))
    return report


def check_options(options: Options) -> None:
    for name in ("pairs", "distortions", "shown", "blocks"):
        check_count(f"--{name}", getattr(options, name), most=10**6)
    check_seed(options.seed)
    check_device(options.device)
    check_folder(options.out)
    if not options.models:
        raise ValueError("--models names no model; expected NAME=PATH or NAME=PATH@KAPPA")


def load_models(options: Options) -> dict[str, Trained]:
    """Load every NAME=PATH or NAME=PATH@KAPPA of the command line.

    Raises:
        ValueError: One is neither, two have one name, or there is no such model.
    """
    models: dict[str, Trained] = {}
    for text in options.models:
        name, _, place = text.partition("=")
        path, _, kappa = place.partition("@")
        if not name or not path or not (kappa or "1").isdecimal():
            raise ValueError(f"--models has {text!r}; expected NAME=PATH or NAME=PATH@KAPPA")
        if name in models:
            raise ValueError(f"two models have the name {name!r}")
        models[name] = load_trained(Path(path), int(kappa) if kappa else None)
        models[name].generator.to(options.device)
    return models


def check_fit(name: str, model: Trained, pictures: Pictures) -> None:
    (h, w), (rows, columns) = model.generator.config.size, pictures.size
    if (h, w) != (rows, columns):
        raise ValueError(f"{name} makes pictures of {h}x{w}, the data has {rows}x{columns}")


def tasks(pictures: Pictures, options: Options) -> dict[str, Task]:
    """Draw the tasks that the data allows."""
    truth, seed = open_truth(options.data, options.split), options.seed
    found = {"distortion": distortion_task(pictures, options.distortions, seed, truth)}
    if len(pictures.pairs):
        found["pairs"] = pair_task(pictures, options.pairs, seed, truth)
    return found


@torch.no_grad()
def render(generator: Generator, task: Task, device: torch.device) -> Rendered:
    """Make the pictures, and measure how exactly the finest attention finds what to copy."""
    images, keys = [], []
    for ids in torch.arange(len(task)).split(BATCH):
        part = part_of(task, ids)
        inputs = (part.batch.source, part.batch.source_maps, part.batch.target_maps)
        morph = generator(*(x.to(device) for x in inputs))
        images.append(morph.image.float().cpu())
        if morph.levels:
            keys += [key_scores(morph, part, i) for i in range(len(part))]
    names = keys[0] if keys else {}
    found = {name: torch.tensor([each[name] for each in keys]) for name in names}
    return Rendered(torch.cat(images), found)


def key_scores(morph: Morph, task: Task, picture: int) -> dict[str, float]:
    where = task.places[picture], task.copyable[picture]
    return copy_accuracy(key_distances(morph.levels[0], picture, *where))


def scores(rendered: Rendered, task: Task, perceptual: Perceptual | None = None) -> Scores:
    """Measure every picture in every way; texture and perceptual distance as in training."""
    images, truths = in_unit_range(rendered.images), in_unit_range(task.batch.truth)
    found = {
        "psnr": psnr(images, truths),
        "ssim": ssim(images, truths),
        "ssim_patn": ssim(images, truths, "patn"),
        "l1": l1(images, truths),
        "texture": TextureEnergy().each(2 * images - 1, 2 * truths - 1),
    }
    if task.copyable.any():
        found["copyable_psnr"] = psnr(images, truths, task.copyable)
        found["copyable_ssim"] = ssim(images, truths, where=task.copyable)
    if perceptual is not None:
        pairs = zip((2 * images - 1).split(BATCH), (2 * truths - 1).split(BATCH))
        with torch.no_grad():
            found["perceptual"] = torch.cat([perceptual.each(*pair) for pair in pairs])
    return found | rendered.keys


def judged(
    rendered: dict[str, Rendered], task: Task, perceptual: Perceptual | None, frechet: Frechet
) -> dict[str, Any]:
    """Summarise each model, and what the first differs from each other, picture by picture."""
    found = {name: scores(each, task, perceptual) for name, each in rendered.items()}
    first, *others = found
    said = {
        "pictures": len(task),
        "scores": {name: summary(each) for name, each in found.items()},
        "differences": {
            f"{first} minus {other}": summary(differences(found[first], found[other]))
            for other in others
        },
    }
    if len(task) >= frechet.least:
        truths = in_unit_range(task.batch.truth)
        said[frechet.name] = {
            name: frechet(in_unit_range(each.images), truths) for name, each in rendered.items()
        }
    return said


def facts(trained: Trained, task: Task, device: torch.device) -> dict[str, Any]:
    """Describe a model and its training."""
    generator = trained.generator
    kept = ("setting", "batch", "steps", "seed", "start")
    return {
        "attention": generator.config.attention,
        "parameters": sum(x.numel() for x in generator.parameters()),
        "steps_taken": trained.step,
        **{name: trained.facts[name] for name in kept if name in trained.facts},
        "attention_bytes": level_bytes(generator, task, device),
    }


if __name__ == "__main__":
    command(lambda: print(as_markdown(main(tyro.cli(Options)))))
