"""Judge generators on held-out people: numbers with errors, and pictures to look at.

    python -m examples.images.pose_morphing.evaluate --data FOLDER --out FOLDER \\
        --models gpa=runs/gpa gpa8=runs/gpa@8 no=runs/no

Each model is a name, the folder (or one checkpoint) of a training run and, if wanted, another kappa
than in training. The first is the one whose differences from the others are reported. Writes
evaluation.json, evaluation.md, pairs.png and distortion.png.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from examples.images.pose_morphing.losses.perceptual import Perceptual
from examples.images.pose_morphing.measures.report import as_markdown, contact_sheet
from examples.images.pose_morphing.measures.scores import (
    BATCH,
    Rendered,
    level_bytes,
    render,
    scores,
)
from examples.images.pose_morphing.measures.table import (
    differences,
    machine,
    summary,
)
from examples.images.pose_morphing.measures.tasks import (
    Task,
    distortion_task,
    in_unit_range,
    pair_task,
)
from examples.images.pose_morphing.measures.truth import open_truth
from examples.images.pose_morphing.sheet import save_picture
from examples.images.pose_morphing.studies.frechet import WIDTHS, RandomFeatures, frechet_distance
from examples.images.pose_morphing.studies.inception import load_inception
from examples.images.pose_morphing.trained import Trained, load_trained
from examples.people import open_pictures
from examples.people.pictures import Pictures
from examples.training.files import replacing


@dataclass(frozen=True)
class Options:
    """What is judged, on what."""

    data: Path  # a folder that `data.open_pictures` knows
    models: tuple[str, ...]  # name=PATH or name=PATH@KAPPA
    out: Path = Path("runs/evaluation")
    pairs: int = 96
    distortions: int = 48
    seed: int = 77
    shown: int = 8  # rows of a contact sheet
    blocks: int = 1  # of rows, side by side
    form: str = "png"  # of the contact sheets
    split: str = "test"
    perceptual: bool = True  # measure the perceptual distance, which takes the most time
    vgg: Path | None = None  # torchvision's vgg16 weights for it, instead of random ones
    inception: Path | None = None  # Inception-v3 weights, for the Frechet distance
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Contestant:
    """A model with its name."""

    name: str
    trained: Trained


def main(options: Options) -> dict[str, Any]:
    """Judge, write, and return what the JSON file holds.

    Raises:
        ValueError: A model or the data cannot be read, or they do not fit; nothing was written.
    """
    contestants = [contestant(text, options.device) for text in options.models]
    names = [each.name for each in contestants]
    if len(set(names)) < len(names):
        raise ValueError(f"two models have one name: {', '.join(names)}")
    size = contestants[0].trained.generator.config.size
    pictures = open_pictures(options.data, options.split, size)
    for each in contestants:
        check_fit(each, pictures)
    judge = judge_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "vgg": "random weights" if options.vgg is None else options.vgg.name,
        "tasks": {},
    }
    for name, task in tasks(pictures, options).items():
        rendered = judge.render(contestants, task, name)
        report["tasks"][name] = judge.report(rendered, task)
        sheet = contact_sheet(task, rendered, options.shown, options.blocks)
        save_picture(sheet, options.out / f"{name}.{options.form}")
    report["models"] = {each.name: judge.facts(each.trained, task) for each in contestants}
    with replacing(options.out / "evaluation.json") as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    with replacing(options.out / "evaluation.md") as part:
        part.write_text(as_markdown(report))
    return report


@dataclass(frozen=True)
class Judge:
    """The networks that measure, and where everything runs."""

    device: torch.device
    perceptual: Perceptual | None  # None: is not measured
    frechet: str  # name of the Frechet distance
    features: torch.nn.Module  # that it is over
    least: int  # pictures that it is worth being computed of

    def render(self, contestants: list[Contestant], task: Task, name: str) -> dict[str, Rendered]:
        """What each contestant makes of a task."""
        return {
            each.name: render(each.trained.generator, task, self.device)
            for each in tqdm(contestants, desc=name)
        }

    def report(self, rendered: dict[str, Rendered], task: Task) -> dict[str, Any]:
        """Of each model, and of what the first differs from each other, picture by picture."""
        judged = {name: scores(found, task, self.perceptual) for name, found in rendered.items()}
        first, *others = judged
        found = {
            "pictures": len(task),
            "scores": {name: summary(each) for name, each in judged.items()},
            "differences": {
                f"{first} minus {other}": summary(differences(judged[first], judged[other]))
                for other in others
            },
        }
        if len(task) >= self.least:
            found[self.frechet] = {name: self.distance(x, task) for name, x in rendered.items()}
        return found

    def distance(self, rendered: Rendered, task: Task) -> float:
        """Frechet distance of what was made from the truths."""
        made, truths = (
            torch.cat([self.features(part) for part in in_unit_range(x).split(BATCH)])
            for x in (rendered.images, task.batch.truth)
        )
        return frechet_distance(made, truths)

    def facts(self, trained: Trained, task: Task) -> dict[str, Any]:
        """What a model is and how it came about."""
        generator = trained.generator
        kept = ("setting", "batch", "steps", "seed")
        return {
            "attention": generator.config.attention,
            "parameters": sum(x.numel() for x in generator.parameters()),
            "steps_taken": trained.step,
            **{name: trained.facts[name] for name in kept if name in trained.facts},
            "attention_bytes": level_bytes(generator, task, self.device),
        }


def judge_of(options: Options) -> Judge:
    """With the weights that are at hand."""
    device = torch.device(options.device)
    perceptual = Perceptual(options.vgg) if options.perceptual else None
    if options.inception is None:
        return Judge(device, perceptual, "frechet_random_conv", RandomFeatures(), sum(WIDTHS) + 1)
    return Judge(device, perceptual, *load_inception(options.inception), least=2)


def contestant(text: str, device: str) -> Contestant:
    """From name=PATH or name=PATH@KAPPA.

    Raises:
        ValueError: It is neither, or there is no such model.
    """
    name, _, place = text.partition("=")
    path, _, kappa = place.partition("@")
    if not name or not path or not (kappa or "1").isdigit():
        raise ValueError(f"--models has {text!r}; expected NAME=PATH or NAME=PATH@KAPPA")
    trained = load_trained(Path(path), int(kappa) if kappa else None)
    trained.generator.to(device)
    return Contestant(name, trained)


def check_fit(contestant: Contestant, pictures: Pictures) -> None:
    size = contestant.trained.generator.config.size
    if size != pictures.size:
        raise ValueError(
            f"{contestant.name} makes pictures of {size[0]}x{size[1]}, the data has "
            f"{pictures.size[0]}x{pictures.size[1]}"
        )


def tasks(pictures: Pictures, options: Options) -> dict[str, Task]:
    """The tasks that the data allows."""
    truth, seed = open_truth(options.data, options.split), options.seed
    found = {"distortion": distortion_task(pictures, options.distortions, seed, truth)}
    if len(pictures.pairs):
        found["pairs"] = pair_task(pictures, options.pairs, seed, truth)
    return found


if __name__ == "__main__":
    try:
        chosen = tyro.cli(Options)
        main(chosen)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print((chosen.out / "evaluation.md").read_text())
