"""What `make demo` runs: held-out people in new poses by the networks that ship, under two minutes.

    python -m examples.images.pose_morphing

Draws people whom no network was trained on, morphs them with GPA that is told where on the body a
pixel is, with GPA alone and with no attention above 32x16 pixels, writes contact sheets, key lines
and tables into runs/demo, and takes a few steps of training, to show that those work here.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from examples.common.commands import check_count
from examples.images.pose_morphing import evaluate
from examples.images.pose_morphing.studies import lines
from examples.images.pose_morphing.train import train
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people.figures.cache import Options as FigureOptions, build

SHIPPED = Path(__file__).parent / "checkpoints"
STRANGERS = 1  # a seed of people; training has those of seed 0


@dataclass(frozen=True)
class Options:
    """Morph held-out people with the networks that ship."""

    out: Path = Path("runs/demo")
    body: Path = SHIPPED / "gpa128"  # checkpoint with GPA that is told where on the body a pixel is
    gpa: Path = SHIPPED / "gpa"  # checkpoint with GPA alone
    none: Path = SHIPPED / "none"  # checkpoint without attention above 32x16
    pairs: int = 32
    distortions: int = 16
    steps: int = 12  # of training


def main(options: Options) -> None:
    for name in ("pairs", "distortions", "steps"):
        check_count(f"--{name}", getattr(options, name))
    people = options.out / "figures"
    build(people, FigureOptions((128, 64), identities=30, poses=3, seed=STRANGERS))
    evaluate.main(
        evaluate.Options(
            people,
            (f"GPA + body={options.body}", f"GPA={options.gpa}", f"none={options.none}"),
            out=options.out,
            pairs=options.pairs,
            distortions=options.distortions,
            split="train",  # of strangers: all are held out
            perceptual=False,
            device="cpu",
        )
    )
    picture = options.out / "lines.png"
    lines.main(lines.Options("0", "1", options.body, people, "train", out=picture))
    learn(people, options.steps)
    print((options.out / "evaluation.md").read_text())
    print(f"The pictures are pairs.png, distortion.png and lines.png in {options.out}.")


def learn(people: Path, steps: int) -> None:
    """Train a few steps as the networks that ship began, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        train(TrainConfig(people, Path(folder), steps=steps, coarse_first=0.25, device="cpu"))
