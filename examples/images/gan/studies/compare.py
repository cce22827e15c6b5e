"""Which generator makes the best pictures in the same processor time?

    python -m examples.images.gan.studies.compare --data FOLDER --out runs/gans --minutes 12

Trains every system at its tiny preset with its own attention and with GPA in its place. Whichever
run has had the least processor time goes on by a few steps, until all have had `--minutes`, so
that they can be compared at any moment; `report` does. Seeds take turns, in rounds of a few
minutes. The command can be stopped and given again at any time, and `--minutes` raised: nothing
depends on the end.

DATA are drawn figures of 256x128, whose heads are cut out:
`python -m examples.people.figures --folder FOLDER --size 256 128 --identities 1000 --poses 4
--no-truth`. Each run keeps its measures in measures.json; the time is that of training alone.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from examples.common import checkpoints
from examples.common.commands import check_count, check_number, command, set_threads
from examples.common.files import check_folder, write_json
from examples.common.untrusted import read_json
from examples.images.gan.data import Pictured, open_data
from examples.images.gan.measures import Measures, made_by
from examples.images.gan.quick import GPA, quick
from examples.images.gan.systems import SYSTEMS, config_of, latent_width
from examples.images.gan.train import Trainer, train


@dataclass(frozen=True)
class Case:
    """One training run."""

    system: str
    attention: str = "own"  # or "gpa" in its place
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.system}-{self.attention}-{self.seed}"


Attention = Literal["own", "gpa"]
ATTENTIONS: tuple[Attention, ...] = ("own", "gpa")


def cases(
    seed: int,
    systems: tuple[str, ...] = tuple(SYSTEMS),
    attentions: tuple[Attention, ...] = ATTENTIONS,
) -> list[Case]:
    """List the runs of a seed."""
    return [Case(system, attention, seed) for attention in attentions for system in systems]


@dataclass(frozen=True)
class Options:
    """Train everything that is missing."""

    data: str  # a folder of drawn figures, or what `train` takes
    out: Path = Path("runs/gans")
    minutes: float = 12.0  # of one core, for each run
    round: float = 5.0  # minutes that every run of every seed has before any has more
    seeds: int = 2
    systems: tuple[str, ...] = tuple(SYSTEMS)
    attentions: tuple[Attention, ...] = ATTENTIONS
    every: int = 200  # steps between measures
    pictures: int = 512  # that are measured
    inception: Path | None = None  # weights of Inception-v3; else form and colours


def main(options: Options) -> None:
    """Train the runs of each seed in turns."""
    for name in ("minutes", "round"):
        check_number(f"--{name}", getattr(options, name), 0, above=True)
    for name in ("seeds", "every", "pictures"):
        check_count(f"--{name}", getattr(options, name))
    check_folder(options.out)
    set_threads(1)
    for system in options.systems:
        config_of(system, "tiny32", None, 1)
    pictured = open_data(options.data, 32)
    measures = Measures.of(pictured, options.pictures, options.inception)
    for minutes in goals(options.minutes, options.round):
        for seed in range(options.seeds):
            some = cases(seed, options.systems, options.attentions)
            while time_of(case := least_trained(some, options.out), options.out) < 60 * minutes:
                go_on(case, options, pictured, measures)


def goals(minutes: float, each: float) -> list[float]:
    """Return what all runs have had after each round: multiples of `each`, and last `minutes`."""
    return [*(each * (i + 1) for i in range(math.ceil(minutes / each) - 1)), minutes]


def least_trained(some: list[Case], out: Path) -> Case:
    return min(some, key=lambda case: time_of(case, out))


def time_of(case: Case, out: Path) -> float:
    return seconds(curve_of(out / case.name))


def curve_of(folder: Path) -> dict[str, dict[str, float]]:
    """Read what was measured of a run, by the number of steps it had taken."""
    path = folder / "measures.json"
    return read_json(path) if path.is_file() else {}


def seconds(curve: dict[str, dict[str, float]]) -> float:
    """Return the processor time of the steps that were measured."""
    return sum(point["interval_s"] for point in curve.values())


def go_on(case: Case, options: Options, pictured: Pictured, measures: Measures) -> None:
    """Train a case up to its next measure."""
    out = options.out / case.name
    curve = curve_of(out)
    done = max(map(int, curve), default=0)
    attention = GPA if case.attention == "gpa" else None
    steps = done + options.every
    config = quick(out, case.system, options.data, steps, attention=attention, seed=case.seed)
    found = checkpoints.records(out)
    first = checkpoints.step_of(found[0]) if found else 0
    began = time.process_time()

    def watch(trainer: Trainer, step: int) -> dict[str, float]:
        if step < steps:
            return {}
        each = (time.process_time() - began) / (steps - first)
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(options.pictures, latent_width(trainer.model), generator=generator)
        now = measures(made_by(trainer.average, latents, pictured.classes))
        point = {"interval_s": each * options.every, **now}
        write_json(out / "measures.json", {**curve, str(steps): point})
        return now

    print(case.name, steps, flush=True)
    train(config, pictured, watch)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
