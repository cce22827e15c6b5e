"""Does GPA copy what no attention at high resolution cannot? Equal steps, equal time, three seeds.

    python -m examples.images.pose_morphing.studies.compare --data FOLDER

Trains each network for each seed (a run that is there goes on), judges all on held-out people, and
writes compare.json and compare.md: means over seeds, with the standard deviation over them. Equal
time means that the network without GPA takes as many more steps as its steps are faster, which is
measured first, in turns, and kept in speed-*.json.
"""

import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from examples.common.commands import check_count, command
from examples.common.files import check_folder, replacing
from examples.common.untrusted import fields, read_json
from examples.images.pose_morphing import evaluate
from examples.images.pose_morphing.config import preset
from examples.images.pose_morphing.measures.report import machine
from examples.images.pose_morphing.train import Trainer, train
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people import open_pictures
from examples.people.pictures import Pictures

ROUNDS = 7  # of timing
NAMED = ("preset", "without", "seeds", "distortion_steps", "mixed_steps", "batch")  # in the report


@dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path  # figures rendered ahead
    out: Path = Path("runs/compare")  # checkpoints
    results: Path = Path("examples/images/pose_morphing/results")
    preset: str = "small128"
    without: str = "NO_16"  # the attention that is compared with the preset's own
    seeds: int = 3
    distortion_steps: int = 1200
    mixed_steps: int = 1800
    batch: int = 4
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Entry:
    """One training run: what it learns, with what attention, for how long."""

    setting: str  # distortion or mixed
    name: str  # column of the table
    config: TrainConfig


def main(options: Options) -> None:
    for name in ("seeds", "distortion_steps", "mixed_steps", "batch"):
        check_count(f"--{name.replace('_', '-')}", getattr(options, name))
    replace(preset(options.preset), attention=options.without)  # raises where it does not fit
    check_folder(options.out)
    check_folder(options.results)
    pictures = open_pictures(options.data, "train")
    ratio = speed_ratio(options, pictures)
    for entry in entries(options, ratio):
        train(entry.config, pictures)
    report = {"machine": machine(options.device), "speed_ratio": ratio, "settings": {}}
    report |= {name: getattr(options, name) for name in NAMED}
    for setting in ("distortion", "mixed"):
        report["settings"][setting] = over_seeds(options, ratio, setting)
    options.results.mkdir(parents=True, exist_ok=True)
    with replacing(options.results / "compare.json") as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    with replacing(options.results / "compare.md") as part:
        part.write_text(as_markdown(report))


def entries(options: Options, ratio: float) -> list[Entry]:
    """All runs, seed by seed."""
    steps = {"distortion": options.distortion_steps, "mixed": options.mixed_steps}
    wanted = []
    for seed in range(options.seeds):
        for setting, count in steps.items():
            for name, attention, taken in (
                ("GPA", None, count),
                ("none, equal steps", options.without, count),
                ("none, equal time", options.without, round(count * ratio)),
            ):
                config = base(options, setting, attention, taken, seed)
                wanted.append(Entry(setting, name, config))
    return wanted


def base(
    options: Options, setting: str, attention: str | None, steps: int, seed: int
) -> TrainConfig:
    folder = f"{setting}-{attention or 'gpa'}-{steps}-{seed}"
    return TrainConfig(
        options.data,
        options.out / folder,
        preset=options.preset,
        attention=attention,
        setting=setting,
        steps=steps,
        batch=options.batch,
        threads=options.threads,
        device=options.device,
        seed=seed,
    )


def speed_ratio(options: Options, pictures: Pictures) -> float:
    """How many steps without GPA take the time of one with it, over a whole run."""
    kept = options.out / f"speed-{options.preset}-{options.without}-{options.batch}.json"
    if kept.is_file():
        return fields(read_json(kept), {"ratio": float}, str(kept))["ratio"]
    configs = [base(options, "distortion", a, 1000, 0) for a in (None, options.without)]
    trainers = [Trainer(config, pictures) for config in configs]
    share = configs[0].coarse_first
    times: dict[tuple[int, int], list[float]] = {}
    for turn in range(ROUNDS + 1):
        for i, trainer in enumerate(trainers):
            for step in (0, 999):  # before and after the attentions that select are used
                started = time.process_time()
                trainer.advance(step)
                if turn:  # the first only warms up
                    times.setdefault((i, step), []).append(time.process_time() - started)
    median = {key: statistics.median(x) for key, x in times.items()}
    gpa, none = (share * median[i, 0] + (1 - share) * median[i, 999] for i in (0, 1))
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as part:
        part.write_text(json.dumps({"ratio": gpa / none, "seconds": [gpa, none]}))
    return gpa / none


def over_seeds(options: Options, ratio: float, setting: str) -> dict[str, Any]:
    """The scores of every network on both tasks: mean and deviation over seeds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in range(options.seeds):
        runs = [e for e in entries(options, ratio) if e.setting == setting]
        runs = [e for e in runs if e.config.seed == seed]
        judged = evaluate.main(
            evaluate.Options(
                options.data,
                tuple(f"{i}={entry.config.out}" for i, entry in enumerate(runs)),
                out=options.out / f"{setting}-{seed}",
                device=options.device,
            )
        )
        for task, said in judged["tasks"].items():
            for i, entry in enumerate(runs):
                for score, numbers in said["scores"][str(i)].items():
                    row = found.setdefault(task, {}).setdefault(score, {})
                    row.setdefault(entry.name, []).append(numbers["mean"])
    return found


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        f"On {report['machine']}. A step without GPA is {report['speed_ratio']:.2f} times as fast.",
        f"Preset {report['preset']}, without GPA {report['without']}, "
        f"batches of {report['batch']}.",
        f"GPA and equal steps: {report['distortion_steps']} steps on distortion, "
        f"{report['mixed_steps']} mixed.",
        f"Means over {report['seeds']} seeds, and the standard deviation over them.",
        "",
    ]
    for setting, tasks in report["settings"].items():
        for task, scores in tasks.items():
            names = list(next(iter(scores.values())))
            lines += [f"## Trained on {setting}, judged on {task}", ""]
            lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
            for score, row in scores.items():
                cells = [f"{statistics.mean(x):.4g} ± {spread(x):.2g}" for x in row.values()]
                lines.append(f"| {score} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def spread(x: list[float]) -> float:
    return statistics.stdev(x) if len(x) > 1 else 0.0


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
