"""Which attention learns most in equal time and in equal steps: the paper's Figures 5 and 7, small.

    python -m examples.images.pose_morphing.studies.ablation --data FOLDER --out FOLDER

Trains the distortion task with each attention on one thread, several seeds each, at a constant
rate, and judges it on held-out figures after equal processor time and after equal steps. All
attentions have the same affinity. Far fields and other ways to choose key blocks stand beside the
paper's choice. Every finished run is a JSON file, and a run that was stopped goes on: the command
can be given again at any time, also with more seeds. Writes ablation.md, memory.png (error against
memory), kappa.png (error against kappa) and errors.png (Figure 5b).
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, check_number, command
from examples.common.files import check_folder, write_json, write_tensors
from examples.common.untrusted import read_json
from examples.images.pose_morphing.config import RULES, preset
from examples.images.pose_morphing.evaluate import render, scores
from examples.images.pose_morphing.measures.report import machine, summary
from examples.images.pose_morphing.measures.tasks import Task, distortion_task, part_of
from examples.images.pose_morphing.model import Generator, set_kappa
from examples.images.pose_morphing.studies.ablation_report import write_errors, write_report
from examples.images.pose_morphing.studies.memory import entries_of, level_bytes
from examples.images.pose_morphing.studies.step_time import step_seconds
from examples.images.pose_morphing.train import Trainer, train
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures
from ndgpa.attention.far_field import FAR

PIVOT = "GPA128_4_8"  # 64x32 pixels: Phase 1 at 16x8, a cell for each of its sites
KAPPAS = (1, 2, 4, 8, 16)
ATTENTIONS = (
    *(f"GPA128_{kappa}_8" for kappa in KAPPAS),
    *("GPA32_4_8", "GPA32_4_4", "GPA512_4_16"),  # larger cells; Phase 1 at 8x4, at 32x16
    *(f"NYF{rank}_8" for rank in (8, 32, 128)),
    *(f"PER{rank}_8" for rank in (8, 32, 128)),
    *("NO_8", "FULL_8"),
    *(f"{PIVOT}+{word}" for word in (*FAR, *RULES)),  # against the pivot
)
SAME = ("seconds", "steps", "preset", "batch", "tests", "smoke")  # of all runs of a report
SHOWN = 6  # test pictures
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Which attention learns most in equal time and steps, and what it costs."""

    data: Path  # figures of the preset's size
    out: Path = Path("runs/ablation")
    seconds: float = 150.0  # of processor time after which runs are compared
    steps: int = 800  # after which runs are compared
    seeds: int = 3
    attentions: tuple[str, ...] = ATTENTIONS
    preset: str = "tiny64"
    batch: int = 4
    tests: int = 100  # held-out pictures
    smoke: bool = False  # two steps: shows that the program runs, not what it finds


def main(options: Options) -> None:
    """Everything that is missing, seed by seed, and the report of what there is."""
    check_number("--seconds", options.seconds, 0.0, above=True)
    for name in ("seeds", "batch", "tests", "steps"):
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
    configs = {name: config_of(options, name, seed=0, steps=100) for name in options.attentions}
    step_s = step_seconds(options.out / "step_s.json", configs, training)
    todo = [(name, seed) for seed in range(options.seeds) for name in options.attentions]
    for name, seed in tqdm(todo, desc="runs"):
        path = options.out / "runs" / f"{name}-{seed}.json"
        if not path.is_file():
            found = trained(options, name, seed, step_s[name], training, task)
            write_json(path, found)
            report(options, task)
    report(options, task)


def report(options: Options, task: Task) -> None:
    """Write the tables and pictures of what there is."""
    about = (
        f"after {options.seconds:g} processor seconds, and after {options.steps} steps, of training"
    )
    write_report(options.out, machine("cpu"), about, PIVOT)
    pictures = options.out / "pictures"
    write_tensors(pictures / "truth.safetensors", as_bytes(shown(task).batch.truth))
    if len(list(pictures.iterdir())) > 1:
        write_errors(pictures, options.out / "errors.png")


def shown(task: Task) -> Task:
    """Return the first test pictures."""
    return part_of(task, torch.arange(min(SHOWN, len(task))))


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
    """Train one run; return its scores in equal time and steps, and what its attention takes."""
    ends = {"scores": steps_of(options, step_s), "scores_at_steps": options.steps}
    config = config_of(options, name, seed, max(ends.values()))
    kept = config.out / "judged.json"

    def watch(trainer: Trainer, done: int) -> dict[str, float]:
        for key in [key for key, end in ends.items() if end == done]:
            now = at_end(trainer.average, task, key, name)
            write_json(kept, {**(read_json(kept) if kept.is_file() else {}), **now})
            if seed == 0 and key == "scores":
                images = render(trainer.average, shown(task), DEVICE).images
                write_tensors(options.out / "pictures" / f"{name}.safetensors", as_bytes(images))
        return {}

    generator = train(config, pictures, watch).average
    return {
        "attention": name,
        "seed": seed,
        "step_s": step_s,
        "steps": ends["scores"],
        "attention_bytes": level_bytes(generator, task, DEVICE),
        **({} if "+" in name else {"attention_entries": entries_of(generator, task)}),
        **read_json(kept),
    }


def at_end(generator: Generator, task: Task, key: str, name: str) -> dict[str, Any]:
    """Judge a generator under the name of `key`; the pivot also when it reads other kappas."""
    generator = copy.deepcopy(generator).eval()
    found = {key: judged(generator, task)}
    if name == PIVOT and key == "scores":
        found["read"] = {str(kappa): read_with(generator, kappa, task) for kappa in KAPPAS}
    return found


def as_bytes(images: Tensor) -> dict[str, Tensor]:
    return {"images": ((images.clamp(-1, 1) + 1) * 127.5).round().byte()}


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
        hold=1.0,
        device="cpu",
        threads=1,
        seed=seed,
    )


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
