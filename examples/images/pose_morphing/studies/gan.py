"""The paper's own training: which part does its adversary play, and does GPA help it?

    python -m examples.images.pose_morphing.studies.gan --data FOLDER --strangers FOLDER

Trains {GPA, no attention} x {with, without discriminator} x {pairs, single pictures} by equation 2
of the paper in the paper's wiring, the same on the losses and the wiring that learn within minutes,
and GPA with a far field in the paper's wiring, on distortions alone. One run after the other, the
first seed of all before the second. The command can be stopped and given again at any time.
`gan_report.py` judges what is complete.

STRANGERS are people that no run saw; keys within 3 pixels are measured on them along the way.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import tyro

from examples.common import checkpoints
from examples.common.commands import check_count, command
from examples.common.files import check_folder, write_json
from examples.common.untrusted import read_json
from examples.images.pose_morphing.measures.tasks import Task, pair_task
from examples.images.pose_morphing.studies.judge import keys_within
from examples.images.pose_morphing.train import Trainer, train
from examples.images.pose_morphing.train_options import EQUATION_2, TrainConfig, Weights, paper
from examples.people.figures.truth import open_truth
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures

WATCHED = 32  # pairs of strangers
ATTENTIONS = {
    "gpa": "GPA128_4_8",
    "none": "NO_8",
    "far_site": "GPA128_4_8+site",
    "far_block": "GPA128_4_8+block",
    "full": "FULL_8",
}


@dataclass(frozen=True)
class Case:
    """One training run."""

    attention: str  # of ATTENTIONS
    wiring: str = "paper"  # or "learnable": the preset that learns within minutes
    discriminator: bool = True
    paired: bool = True
    seed: int = 0
    wrong_poses: bool = False

    @property
    def name(self) -> str:
        words = ["gan" if self.discriminator else "plain", "paired" if self.paired else "unpaired"]
        words += ["wrong_poses"] if self.wrong_poses else []
        return "-".join([self.wiring, self.attention, *words, str(self.seed)])

    def config(self, data: Path, out: Path, steps: int) -> TrainConfig:
        """Build its options."""
        pairs = "equation2" if self.wiring == "paper" else "mixed"
        setting = pairs if self.paired else "unpaired" if self.discriminator else "distortion"
        config, weights = paper(data, out / self.name, setting), EQUATION_2
        if self.wiring == "learnable":
            config = TrainConfig(data, out / self.name, preset="tiny64", setting=setting)
            weights = Weights()
        return replace(
            config,
            attention=ATTENTIONS[self.attention],
            weights=replace(weights, gan=float(self.discriminator)),
            steps=steps,
            threads=1,
            device="cpu",
            seed=self.seed,
            wrong_poses=self.wrong_poses,
            save_every_s=120.0,
        )


def cases(seeds: int) -> list[Case]:
    """List all, in the order of training."""
    found = []
    for seed in range(seeds):
        for wiring, paired, discriminator, attention in product(
            ("learnable", "paper"), (True, False), (True, False), ("gpa", "none")
        ):
            found.append(Case(attention, wiring, discriminator, paired, seed))
        found.append(Case("gpa", "learnable", paired=False, seed=seed, wrong_poses=True))
        for attention in ("far_site", "far_block"):
            found.append(Case(attention, discriminator=False, paired=False, seed=seed))
    return found


@dataclass(frozen=True)
class Options:
    """Train everything that is missing."""

    data: Path  # figures of 64x32
    strangers: Path  # figures of another seed, with the truth
    out: Path = Path("runs/gan")
    seeds: int = 3
    steps: int = 3000
    watch_every: int = 250


def main(options: Options) -> None:
    """Train the runs one after the other."""
    for name in ("seeds", "steps", "watch_every"):
        check_count(f"--{name.replace('_', '-')}", getattr(options, name))
    check_folder(options.out)
    pictures = open_pictures(options.data, "train")
    task = watched(options.strangers)
    for case in cases(options.seeds):
        run(case, options, pictures, task)


def run(case: Case, options: Options, pictures: Pictures, task: Task) -> None:
    """Train one case, or what is missing of it, and keep the curve of its keys beside it."""
    config = case.config(options.data, options.out, options.steps)
    found = checkpoints.records(config.out)
    if found and checkpoints.step_of(found[0]) == options.steps:
        return
    path = config.out / "keys.json"

    def watch(trainer: Trainer, done: int) -> dict[str, float]:
        if done % options.watch_every and done != options.steps:
            return {}
        now = keys_within(trainer.average, task)
        curve = read_json(path) if path.is_file() else {}
        write_json(path, {**curve, str(done): now})
        return now

    print(case.name, flush=True)
    train(config, pictures, watch)


def watched(strangers: Path) -> Task:
    """Draw the pairs on which keys are followed."""
    pictures = open_pictures(strangers, "train")
    return pair_task(pictures, WATCHED, seed=5, truth=open_truth(strangers, "train"))


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
