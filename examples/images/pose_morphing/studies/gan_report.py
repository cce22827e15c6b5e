"""What the runs of `gan.py` that are complete have learnt.

    python -m examples.images.pose_morphing.studies.gan_report --data FOLDER --strangers FOLDER

Judges every complete run on people that none saw, once, and keeps what it finds as
`gan/runs/NAME.json`. Writes gan.md, gan/curves.png (keys found along the training) and
gan/sheet.jpg.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, command
from examples.common.figures import save_figure
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.common.untrusted import read_json
from examples.images.pose_morphing.measures.report import contact_sheet
from examples.images.pose_morphing.measures.sheet import save_picture
from examples.images.pose_morphing.measures.tasks import Task, part_of
from examples.images.pose_morphing.studies.gan import Case, cases
from examples.images.pose_morphing.studies.judge import TITLES, Judge, cells, is_complete, made
from examples.images.pose_morphing.trained import load_trained
from examples.people.sources import open_pictures

SHOWN = 8  # rows of the sheet
ABOUT = """Means over seeds ± standard deviation; {pictures} pairs of people that no run saw, of
64x32 pixels; {steps} steps of training; machine: {machine}. The Frechet distance is between made
and true pictures, on the last features of a network that was trained on figures (the "judge" of
`examples/people/recogniser`) and is not the network of the perceptual loss, as a share of the
variance of the true ones: 1 is as far as one picture for all. It is no FID; the last row has that
of other people's true pictures. PSNR is of pictures that are to follow an affine map of their own
pose. Key points found: the share of those asked for that the same network finds within 5 % of the
height. D(right pose) > D(wrong): the share of true pictures whose own pose the discriminator
prefers to somebody else's, 0.5 by chance. Without a word about the wiring it is the recipe that
learns within minutes ("learnable"). Keys are those of the finest attention, and near is 3
pixels of a picture of 128 rows; a random key is near in 0.3 % of the cases."""


@dataclass(frozen=True)
class Options:
    """Judge the complete runs."""

    data: Path  # the figures of the training
    strangers: Path  # figures of another seed, with the truth
    runs: Path = Path("runs/gan")
    results: Path = Path("examples/images/pose_morphing/results")
    pictures: int = 1000
    seeds: int = 3


def main(options: Options) -> None:
    """Judge what is complete and not judged yet; write the report of all."""
    check_count("--pictures", options.pictures)
    check_count("--seeds", options.seeds)
    check_folder(options.results / "gan")
    complete = [case for case in cases(options.seeds) if is_complete(options.runs / case.name)]
    if not complete:
        raise ValueError(f"{options.runs} holds no complete run")
    judge = Judge.of(options.strangers, options.pictures)
    for case in tqdm(complete, desc="runs"):
        path = record(options, case)
        if not path.is_file():
            folder = options.runs / case.name
            write_json(path, {**judge(folder), "curve": read_json(folder / "keys.json")})
    said = {case: read_json(record(options, case)) for case in complete}
    truth = judge.of_pictures(judge.task.batch.truth)
    truth["frechet"] = judge.others(open_pictures(options.data, "train"))
    write_text(options.results / "gan.md", report(said, truth, options.pictures))
    save_figure(curves(said), options.results / "gan" / "curves.png", dpi=110)
    sheet = contact_sheet(judge.task, made_by(options.runs, complete, judge.task), SHOWN)
    save_picture(sheet, options.results / "gan" / "sheet.jpg")


def record(options: Options, case: Case) -> Path:
    return options.results / "gan" / "runs" / f"{case.name}.json"


def made_by(runs: Path, complete: list[Case], task: Task) -> dict[str, Tensor]:
    """Make the first pictures of the task with every run of the first seed."""
    some = part_of(task, torch.arange(min(SHOWN, len(task))))
    return {
        label(case): made(load_trained(runs / case.name).generator, some).clamp(-1, 1)
        for case in complete
        if case.seed == 0
    }


def label(case: Case) -> str:
    """Name a case without its seed."""
    words = [case.attention.replace("_", " "), "" if case.paired else "unpaired"]
    words += ["D shown wrong poses" if case.wrong_poses else ""]
    words += ["" if case.discriminator else "no D"]
    words += ["the paper's wiring" if case.wiring == "paper" else ""]
    return ", ".join(word for word in words if word)


def report(said: dict[Case, dict[str, Any]], truth: dict[str, float], pictures: int) -> str:
    """Write the tables; the last row of the first is `truth`."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case, found in said.items():
        groups[label(case)].append(found)
    rows = [[name, str(len(each)), *cells(each)] for name, each in groups.items()]
    rows.append(["true pictures", "-", *cells([truth])])
    steps = max(found["steps"] for found in said.values())
    about = ABOUT.format(pictures=pictures, steps=steps, machine=machine())
    heads = ["", "seeds", *TITLES.values()]
    return "\n".join(
        [
            "# Equation 2 of the paper, trained",
            "",
            about,
            "",
            markdown_table(heads, rows),
            "",
            "## GPA minus no attention",
            "",
            markdown_table(heads, differences(said)),
            "",
            "![Keys found along the training](gan/curves.png)",
            "",
            "![People that no run saw, in new poses](gan/sheet.jpg)",
            "",
        ]
    )


def differences(said: dict[Case, dict[str, Any]]) -> list[list[str]]:
    """Compare the two attentions seed by seed, for each kind of training."""
    by_name = {case.name: found for case, found in said.items()}
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for case, found in said.items():
        other = by_name.get(case.name.replace("-gpa-", "-none-"))
        if case.attention == "gpa" and other is not None:
            both = [name for name in TITLES if name in found and name in other]
            rows[label(case)].append({name: found[name] - other[name] for name in both})
    return [[name, str(len(each)), *cells(each)] for name, each in rows.items()]


def curves(said: dict[Case, dict[str, Any]]) -> Figure:
    """Draw the keys found along the training, of the finest level and of a coarse one."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    names = list(dict.fromkeys(label(case) for case in said))
    for axes, level in zip(figure.subplots(1, 2, sharey=True), ("64x32", "16x8"), strict=True):
        shown: set[str] = set()
        for case, found in said.items():
            curve = {int(step): x.get(f"keys/{level}") for step, x in found["curve"].items()}
            steps = sorted(step for step, x in curve.items() if x is not None)
            if not steps or not case.discriminator or not case.paired:
                continue
            name = label(case)
            shares = [curve[step] for step in steps]
            colour = f"C{names.index(name)}"
            axes.plot(steps, shares, color=colour, label=None if name in shown else name)
            shown.add(name)
        axes.set_title(f"attention at {level}")
        axes.set_xlabel("steps")
        axes.legend(fontsize=8)
        axes.set_ylabel("strongest key near the truth, share of pixels")
    return figure


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
