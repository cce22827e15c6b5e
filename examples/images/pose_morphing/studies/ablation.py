"""Which attention learns most in equal time, and what it costs: the paper's Figures 5 and 7, small.

    python -m examples.images.pose_morphing.studies.ablation --data FOLDER --out FOLDER

Trains the distortion task with each attention for the same processor time on one thread, several
seeds each, and judges it on held-out figures. Every finished run is a JSON file, and a run that was
stopped goes on: the command can be given again at any time, also with more seeds. Writes
ablation.md, memory.png (error against memory) and kappa.png (error against kappa).
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from examples.common.commands import check_count, check_number, command
from examples.common.files import check_folder, write_json
from examples.common.untrusted import read_json
from examples.images.pose_morphing.config import preset
from examples.images.pose_morphing.evaluate import render, scores
from examples.images.pose_morphing.measures.report import machine, summary
from examples.images.pose_morphing.measures.tasks import Task, distortion_task
from examples.images.pose_morphing.model import Generator, set_kappa
from examples.images.pose_morphing.studies.ablation_report import write_report
from examples.images.pose_morphing.studies.memory import level_bytes
from examples.images.pose_morphing.train import Trainer, train
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures

PIVOT = "GPA128_4_8"  # 64x32 pixels: Phase 1 at 16x8, a cell for each of its sites
KAPPAS = (1, 2, 4, 8, 16)
ATTENTIONS = (
    *(f"GPA128_{kappa}_8" for kappa in KAPPAS),
    *("GPA32_4_8", "GPA32_4_4", "GPA512_4_16"),  # larger cells; Phase 1 at 8x4, at 32x16
    *("NO_8", "NYF32_8", "NYF128_8", "PER32_8", "PER128_8", "FULL"),
)
SAME = ("seconds", "preset", "batch", "tests", "smoke")  # of all runs of a report
TIMED_STEPS = 3
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Which attention learns most in equal time, and what it costs."""

    data: Path  # figures of the preset's size
    out: Path = Path("runs/ablation")
    seconds: float = 90.0  # of processor time that a run trains
    seeds: int = 3
    attentions: tuple[str, ...] = ATTENTIONS
    preset: str = "tiny64"
    batch: int = 4
    tests: int = 100  # held-out pictures
    smoke: bool = False  # two steps: shows that the program runs, not what it finds


def main(options: Options) -> None:
    """Everything that is missing, seed by seed, and the report of what there is."""
    check_number("--seconds", options.seconds, 0.0, above=True)
    for name in ("seeds", "batch", "tests"):
        check_count(f"--{name}", getattr(options, name))
    for name in options.attentions:
        replace(preset(options.preset), attention=name)  # raises where it does not fit
    check_folder(options.out)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size = preset(options.preset).size
    training = open_pictures(options.data, "train", size)
    task = distortion_task(open_pictures(options.data, "test", size), options.tests, seed=77)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    check_same(options)
    step_s = measured(options, training)
    todo = [(name, seed) for seed in range(options.seeds) for name in options.attentions]
    for name, seed in tqdm(todo, desc="runs"):
        path = options.out / "runs" / f"{name}-{seed}.json"
        if not path.is_file():
            found = trained(options, name, seed, step_s[name], training, task)
            write_json(path, found)
            write_report(options.out, machine("cpu"), options.seconds, PIVOT)
    write_report(options.out, machine("cpu"), options.seconds, PIVOT)


def check_same(options: Options) -> None:
    """Refuse to mix with runs that were made with other options."""
    path = options.out / "options.json"
    now = {name: getattr(options, name) for name in SAME}
    if path.is_file() and read_json(path) != now:
        raise ValueError(
            f"{options.out} holds runs with other options ({path}); give those again or name "
            "another folder"
        )
    write_json(path, now)


def trained(
    options: Options, name: str, seed: int, step_s: float, pictures: Pictures, task: Task
) -> dict[str, Any]:
    """One run: its scores on the test, its memory, and its scores when it reads other kappas."""
    config = config_of(options, name, seed, steps_of(options, step_s))
    generator = train(config, pictures).average.eval()
    found = {
        "attention": name,
        "seed": seed,
        "step_s": step_s,
        "steps": config.steps,
        "attention_bytes": level_bytes(generator, task, DEVICE),
        "scores": judged(generator, task),
    }
    if name == PIVOT:
        found["read"] = {str(kappa): read_with(generator, kappa, task) for kappa in KAPPAS}
    return found


def steps_of(options: Options, step_s: float) -> int:
    """How many steps there is time for."""
    return 2 if options.smoke else max(1, round(options.seconds / step_s))


def read_with(generator: Generator, kappa: int, task: Task) -> dict[str, Any]:
    set_kappa(generator, kappa)
    return judged(generator, task)


def judged(generator: Generator, task: Task) -> dict[str, Any]:
    return summary(scores(render(generator, task, DEVICE), task))


def config_of(options: Options, name: str, seed: int, steps: int) -> TrainConfig:
    """The distortion task, as `train.py` has it; one thread, so that time is comparable."""
    return TrainConfig(
        data=options.data,
        out=options.out / "training" / f"{name}-{seed}",
        preset=options.preset,
        attention=name,
        setting="distortion",
        steps=steps,
        batch=options.batch,
        device="cpu",
        threads=1,
        seed=seed,
    )


def measured(options: Options, pictures: Pictures) -> dict[str, float]:
    """Processor seconds of a training step with each attention, measured once and then kept.

    Processor time, not the clock's: other programs do not count. Steps before and after the
    attentions that select are switched on count as often as they occur.
    """
    path = options.out / "step_s.json"
    known = read_json(path) if path.is_file() else {}
    for name in tqdm([each for each in options.attentions if each not in known], desc="a step"):
        config = config_of(options, name, seed=0, steps=100)
        trainer = Trainer(config, pictures)
        first, late = (median_step_s(trainer, step) for step in (0, 99))
        known[name] = config.coarse_first * first + (1 - config.coarse_first) * late
        write_json(path, known)
    return known


def median_step_s(trainer: Trainer, step: int) -> float:
    """Processor seconds of this step, after one to warm up."""
    times = []
    for _ in range(1 + TIMED_STEPS):
        start = time.process_time()
        trainer.advance(step)
        times.append(time.process_time() - start)
    return float(torch.tensor(times[1:]).median())


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
