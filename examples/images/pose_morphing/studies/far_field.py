"""Does a far field help the network to learn where to look, in equal processor time?

    python -m examples.images.pose_morphing.studies.far_field --data FOLDER --strangers FOLDER

Trains GPA with and without a far field twice: in the paper's wiring on distortions (no copy loss,
no pyramid, no staged start), where a hard choice has to find correspondence by itself, and by the
recipe that learns within minutes. Every run has the same processor time; what it has learnt is
measured along the way, on people that no run saw. The first seed of all comes before the second;
the command can be stopped and given again at any time. Writes far_field.md and far_field.png of the
runs that are complete.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from examples.common.commands import check_count, check_number, command, set_threads
from examples.common.figures import save_figure
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.common.untrusted import read_json
from examples.images.pose_morphing.measures.scores import psnr
from examples.images.pose_morphing.measures.tasks import Task, distortion_task, in_unit_range
from examples.images.pose_morphing.studies.gan import Case, watched
from examples.images.pose_morphing.studies.judge import cell, is_complete, keys_within, made
from examples.images.pose_morphing.studies.step_time import step_seconds
from examples.images.pose_morphing.train import Trainer, train
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures

LABELS = {
    "gpa": "GPA",
    "far_block": 'far="block"',
    "far_site": 'far="site"',
    "full": "full attention",
}
TITLES = {"paper": "the paper's wiring", "learnable": "the recipe that learns"}
COMPARED = [(wiring, name) for wiring in TITLES for name in LABELS]
COMPARED.remove(("learnable", "full"))  # shows in the paper's wiring whether choosing is at fault
FOLLOWED = 64  # distortions of strangers
MEASURES = 8  # times in a run
COARSE, FINE = "keys/16x8", "keys/64x32"  # of the levels at which both wirings attend
HEADS = {FINE: "keys within 3 pixels", COARSE: "keys at 16x8", "psnr": "PSNR of distortions, dB"}
ABOUT = """Means over seeds ± standard deviation. Every run had {seconds:g} s of one core of
{machine}: steps are what fits. In the paper's wiring the
network is trained on distortions alone by equation 2 without a discriminator; the recipe has pairs
and distortions, and the losses that learn within minutes. Measured on people that no run saw: the
share of pixels whose strongest key is within 3 pixels of the truth (by chance .003), the same at
the level of 16x8 sites within one of its sites, and how well a distorted pose is followed.

"""


@dataclass(frozen=True)
class Options:
    """Train everything that is missing, and report."""

    data: Path  # figures of 64x32
    strangers: Path  # figures of another seed, with the truth
    out: Path = Path("runs/far_field")
    results: Path = Path("examples/images/pose_morphing/results")
    seeds: int = 3
    seconds: float = 300.0  # of processor time, a run


def main(options: Options) -> None:
    """Train the runs one after the other; write the report of what there is after each."""
    check_count("--seeds", options.seeds)
    check_number("--seconds", options.seconds, 0.0, above=True)
    for folder in (options.out, options.results / "far_field"):
        check_folder(folder)
    set_threads(1)
    pictures = open_pictures(options.data, "train")
    strangers = open_pictures(options.strangers, "train")
    tasks = watched(options.strangers), distortion_task(strangers, FOLLOWED, seed=5)
    for case in cases(options.seeds):
        if not record(options, case).is_file():
            run(case, options, pictures, *tasks)
            write_report(options)
    write_report(options)


def cases(seeds: int) -> list[Case]:
    return [case_of(*each, seed) for seed in range(seeds) for each in COMPARED]


def case_of(wiring: str, attention: str, seed: int = 0) -> Case:
    """Build a run without discriminator; in the paper's wiring it is on distortions alone."""
    return Case(attention, wiring, discriminator=False, paired=wiring == "learnable", seed=seed)


def record(options: Options, case: Case) -> Path:
    return options.results / "far_field" / f"{case.name}.json"


def run(case: Case, options: Options, pictures: Pictures, pairs: Task, follow: Task) -> None:
    """Train one case, or what is missing of it, and keep what was measured along the way."""
    same = {
        name: case_of(wiring, name).config(options.data, options.out, 100)
        for wiring, name in COMPARED
        if wiring == case.wiring
    }
    known = options.out / f"step_s-{case.wiring}.json"
    step_s = step_seconds(known, same, pictures)[case.attention]
    config = case.config(options.data, options.out, max(1, round(options.seconds / step_s)))
    path = config.out / "curve.json"

    def measure(trainer: Trainer, done: int) -> dict[str, float]:
        if done % -(-config.steps // MEASURES) and done != config.steps:
            return {}
        now = keys_within(trainer.average, pairs)
        both = made(trainer.average, follow).clamp(-1, 1), follow.batch.truth
        now["psnr"] = psnr(*map(in_unit_range, both)).mean().item()
        curve = read_json(path) if path.is_file() else {}
        write_json(path, {**curve, str(done): now})
        return now

    if not is_complete(config.out):
        train(config, pictures, measure)
    found = {"steps": config.steps, "step_s": step_s, "curve": read_json(path)}
    write_json(record(options, case), found)


def write_report(options: Options) -> None:
    """Write the table and the curves of what there is."""
    paths = {case: record(options, case) for case in cases(options.seeds)}
    said = {case: read_json(path) for case, path in paths.items() if path.is_file()}
    groups = {
        (wiring, attention): [
            found
            for case, found in said.items()
            if (case.wiring, case.attention) == (wiring, attention)
        ]
        for wiring, attention in COMPARED
    }
    rows = [
        [TITLES[wiring], LABELS[attention], *ends(each)]
        for (wiring, attention), each in groups.items()
        if each
    ]
    table = markdown_table(["wiring", "attention", "seeds", "steps", *HEADS.values()], rows)
    about = ABOUT.format(seconds=options.seconds, machine=machine())
    picture = "\n![What is learnt over processor time](far_field/curves.png)\n"
    text = "\n".join(["# A far field in the flagship's training", "", about + table, picture])
    write_text(options.results / "far_field.md", text)
    save_figure(curves(said), options.results / "far_field" / "curves.png", dpi=110)


def ends(each: list[dict[str, Any]]) -> list[str]:
    """Write what the seeds of a case have learnt in the end."""
    last = [found["curve"][str(found["steps"])] for found in each]
    steps = mean(found["steps"] for found in each)
    return [
        str(len(each)),
        f"{steps:,.0f}",
        *(cell([found[name] for found in last], ".3f") for name in HEADS),
    ]


def curves(said: dict[Case, dict[str, Any]]) -> Figure:
    """Draw what was measured over processor time: a row for each wiring, a line for each run."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    grid = figure.subplots(len(TITLES), len(HEADS))
    for row, wiring in zip(grid, TITLES, strict=True):
        some = {case: found for case, found in said.items() if case.wiring == wiring}
        for axes, measure in zip(row, HEADS, strict=True):
            for case, found in some.items():
                draw(axes, case, found, measure)
            axes.set_title(f"{HEADS[measure]}: {TITLES[wiring]}", fontsize=9)
            axes.set_xlabel("processor seconds")
    lines = [Line2D([], [], color=colour(name), label=label) for name, label in LABELS.items()]
    grid[0][0].legend(handles=lines, fontsize=8)
    return figure


def draw(axes: Axes, case: Case, found: dict[str, Any], measure: str) -> None:
    steps = sorted(map(int, found["curve"]))
    values = [found["curve"][str(step)][measure] for step in steps]
    seconds = [step * found["step_s"] for step in steps]
    axes.plot(seconds, values, color=colour(case.attention))


def colour(attention: str) -> str:
    return f"C{list(LABELS).index(attention)}"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
