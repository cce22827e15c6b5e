"""Table 1 of the paper, small: how else a source reaches its target, in equal processor time.

    python -m examples.images.pose_morphing.studies.rivals --data FOLDER --strangers FOLDER

Trains the same network with each attention and each of `rivals/`, on pairs and distortions, with a
discriminator at the end, for as many steps as there is time for; judges each on people that no run
saw. The first seed of all comes before the second; the command can be stopped and given again at
any time. Writes rivals.md and rivals/sheet.jpg of the runs that are complete.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from examples.common.commands import check_count, check_number, command, set_threads
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.common.untrusted import read_json
from examples.images.pose_morphing.config import preset
from examples.images.pose_morphing.measures.report import contact_sheet
from examples.images.pose_morphing.measures.sheet import save_picture
from examples.images.pose_morphing.measures.tasks import part_of
from examples.images.pose_morphing.studies.judge import TITLES, Judge, cells, is_complete, made
from examples.images.pose_morphing.studies.step_time import step_seconds
from examples.images.pose_morphing.train import train
from examples.images.pose_morphing.train_options import TrainConfig, Weights
from examples.images.pose_morphing.trained import load_trained
from examples.people.sources import open_pictures

NAMES = {
    "NO_8": "no attention above 16x8",
    "GPA128_4_8": "GPA",
    "GPA128_4_8+block": "GPA and far field",
    "FULL_8": "full attention in the wiring of GPA",
    "NYF128_8": "Nystromformer, 128 landmarks",
    "PER128_8": "Performer, 128 features",
    "SKIP": "UNet (as PATN begins)",
    "PARTS": "deformable skips (DSC)",
    "FLOW": "flow and warping",
    "BFT": "bidirectional modulation (BFT)",
    "XING_8": "crossing attention (XING)",
}
SHOWN = 8  # rows of the sheet
ABOUT = """Means over seeds ± standard deviation; {pictures} pairs of people that no run saw, of
64x32 pixels. Every run had {seconds:g} s of one core of {machine}: steps are what fits. Measures
are those of [gan.md](gan.md); texture, SSIM and L1 are against the true picture. The rivals are
clean and small: each stands in the slot of the copy attention, and none is the whole system of its
paper."""


@dataclass(frozen=True)
class Options:
    """Train and judge everything that is missing."""

    data: Path  # figures of the preset's size
    strangers: Path  # figures of another seed, with the truth
    out: Path = Path("runs/rivals")
    results: Path = Path("examples/images/pose_morphing/results")
    names: tuple[str, ...] = tuple(NAMES)
    seeds: int = 3
    seconds: float = 600.0  # of processor time, a run
    pictures: int = 1000
    preset: str = "tiny64"


def main(options: Options) -> None:
    """Train and judge run after run; write the report of what there is after each."""
    check_number("--seconds", options.seconds, 0.0, above=True)
    for name in ("seeds", "pictures"):
        check_count(f"--{name}", getattr(options, name))
    for name in options.names:
        replace(preset(options.preset), attention=name)  # raises where it does not fit
    for folder in (options.out, options.results / "rivals"):
        check_folder(folder)
    set_threads(1)
    pictures = open_pictures(options.data, "train", preset(options.preset).size)
    judge = Judge.of(options.strangers, options.pictures)
    configs = {name: config_of(options, name, seed=0, steps=100) for name in options.names}
    step_s = step_seconds(options.out / "step_s.json", configs, pictures)
    todo = [(name, seed) for seed in range(options.seeds) for name in options.names]
    for name, seed in tqdm(todo, desc="runs"):
        path = record(options, name, seed)
        if not path.is_file():
            steps = max(1, round(options.seconds / step_s[name]))
            config = config_of(options, name, seed, steps)
            if not is_complete(config.out):
                train(config, pictures)
            write_json(path, judge(config.out))
            write_report(options, judge)
    write_report(options, judge)


def record(options: Options, name: str, seed: int) -> Path:
    return options.results / "rivals" / "runs" / f"{name}-{seed}.json"


def config_of(options: Options, name: str, seed: int, steps: int) -> TrainConfig:
    """Build the options of one run."""
    return TrainConfig(
        options.data,
        options.out / f"{name}-{seed}",
        preset=options.preset,
        attention=name,
        setting="mixed",
        steps=steps,
        weights=Weights(gan=1.0),
        device="cpu",
        threads=1,
        seed=seed,
    )


def write_report(options: Options, judge: Judge) -> None:
    """Write the table of what there is, and a sheet of the first seed."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in options.names:
        for seed in range(options.seeds):
            path = record(options, name, seed)
            if path.is_file():
                groups[name].append(read_json(path))
    rows = [
        [NAMES.get(name, name), str(len(each)), f"{each[0]['steps']:,}", *cells(each)]
        for name, each in groups.items()
    ]
    about = ABOUT.format(pictures=options.pictures, seconds=options.seconds, machine=machine())
    sheet = "![People that no run saw, in new poses](rivals/sheet.jpg)"
    table = markdown_table(["", "seeds", "steps", *TITLES.values()], rows)
    text = "\n".join(["# Table 1 of the paper, small", "", about, "", table, "", sheet, ""])
    write_text(options.results / "rivals.md", text)
    folders = {name: options.out / f"{name}-0" for name in groups}
    some = part_of(judge.task, torch.arange(min(SHOWN, len(judge.task))))
    shown = {
        NAMES.get(name, name): made(load_trained(folder).generator, some).clamp(-1, 1)
        for name, folder in folders.items()
        if folder.is_dir()
    }
    if shown:
        picture = contact_sheet(judge.task, shown, min(SHOWN, len(judge.task)))
        save_picture(picture, options.results / "rivals" / "sheet.jpg")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
