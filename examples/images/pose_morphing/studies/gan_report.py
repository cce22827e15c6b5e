"""What the runs of `gan.py` that are complete have learnt.

    python -m examples.images.pose_morphing.studies.gan_report --data FOLDER --strangers FOLDER

Judges every complete run on people that none saw, once, and keeps what it finds as
`gan/runs/NAME.json`. Writes gan.md, gan/curves.png (keys found along the training) and
gan/sheet.jpg.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from examples.common import checkpoints
from examples.common.commands import check_count, command
from examples.common.figures import save_figure
from examples.common.files import check_folder, write_json, write_text
from examples.common.frechet import frechet_distance
from examples.common.stylegan2 import Discriminator
from examples.common.tables import machine, markdown_table
from examples.common.untrusted import read_json
from examples.images.pose_morphing.data import to_tensors
from examples.images.pose_morphing.evaluate import BATCH
from examples.images.pose_morphing.losses import TextureEnergy
from examples.images.pose_morphing.measures.report import contact_sheet
from examples.images.pose_morphing.measures.scores import l1, ssim
from examples.images.pose_morphing.measures.sheet import save_picture
from examples.images.pose_morphing.measures.tasks import Task, in_unit_range, pair_task, part_of
from examples.images.pose_morphing.model import Generator, discriminator_of
from examples.images.pose_morphing.studies.gan import Case, cases, keys_within
from examples.images.pose_morphing.trained import load_trained
from examples.people import recogniser
from examples.people.figures.truth import open_truth
from examples.people.keypoints import on_picture
from examples.people.pictures import Pictures
from examples.people.recogniser.train import NEAR
from examples.people.sources import open_pictures

KEYED = 128  # pairs on which keys are compared with the truth
SHOWN = 8  # rows of the sheet
TITLES = {
    "frechet": "Frechet distance",
    "texture": "texture distance",
    "ssim": "SSIM",
    "l1": "L1",
    "pose": "key points found",
    "keys": "keys within 3 pixels",
    "right_over_wrong": "D(right pose) > D(wrong)",
}
FORMS = {"frechet": ".1f", "texture": ".4f"}
ABOUT = """Means over seeds ± standard deviation; {pictures} pairs of people that no run saw, of
64x32 pixels; {steps} steps of training; machine: {machine}. The Frechet distance is between made
and true pictures, on the means of the features of a network that was trained on figures (the
"judge" of `examples/people/recogniser`) and is not the network of the perceptual loss. It is no
FID; the last row has that of other people's true pictures. Key points found: the share of those
asked for that the same network finds within 5 % of the height. D(right pose) > D(wrong): the share
of true pictures whose own pose the discriminator prefers to somebody else's, 0.5 by chance. Keys
are those of the finest attention, and near is 3 pixels of a picture of 128 rows; a random key is
near in 0.3 % of the cases."""


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
            write_json(path, judge(options.runs / case.name))
    said = {case: read_json(record(options, case)) for case in complete}
    truth = judge.of_pictures(judge.task.batch.truth)
    truth["frechet"] = judge.others(open_pictures(options.data, "train"))
    write_text(options.results / "gan.md", report(said, truth, options.pictures))
    save_figure(curves(said), options.results / "gan" / "curves.png", dpi=110)
    sheet = contact_sheet(judge.task, made_by(options.runs, complete, judge.task), SHOWN)
    save_picture(sheet, options.results / "gan" / "sheet.jpg")


def record(options: Options, case: Case) -> Path:
    return options.results / "gan" / "runs" / f"{case.name}.json"


def is_complete(folder: Path) -> bool:
    """Tell whether a run has taken all of its steps."""
    if not folder.is_dir():
        return False
    found = checkpoints.records(folder)
    return bool(found) and read_json(found[0])["facts"]["steps"] == checkpoints.step_of(found[0])


@dataclass(frozen=True)
class Judge:
    """What runs are judged on."""

    pictures: Pictures
    task: Task
    keyed: Task  # some of it, with the true correspondence
    network: recogniser.Recogniser
    truths: Float[Tensor, "n 240"]  # features of the true pictures

    @classmethod
    def of(cls, strangers: Path, count: int) -> "Judge":
        pictures = open_pictures(strangers, "train")
        task = pair_task(pictures, count, seed=77)
        truth = open_truth(strangers, "train")
        keyed = pair_task(pictures, min(KEYED, count), seed=77, truth=truth)
        network = recogniser.shipped("judge")
        return cls(pictures, task, keyed, network, batched(network.means, task.batch.truth))

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Measure what the run in a folder has learnt."""
        trained = load_trained(folder)
        found = {"steps": trained.step, **self.of_pictures(made(trained.generator, self.task))}
        found["keys"] = next(iter(keys_within(trained.generator, self.keyed).values()))
        saved = checkpoints.latest(folder)
        assert saved is not None
        if any(name.startswith("discriminator/") for name in saved.tensors):
            discriminator = discriminator_of(trained.generator.config)
            checkpoints.restore({"discriminator": discriminator}, saved.tensors)
            found["right_over_wrong"] = self.right_over_wrong(discriminator)
        return {**found, "curve": read_json(folder / "keys.json")}

    def of_pictures(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Measure made pictures of the task, in -1 to 1."""
        images = images.clamp(-1, 1)
        truth = self.task.batch.truth
        pair = in_unit_range(images), in_unit_range(truth)
        asked = torch.from_numpy(self.task.target_points)
        seen = on_picture(asked, self.pictures.size)
        far = (batched(self.network.points, images) - asked[..., :2]).norm(dim=2)[seen]
        return {
            "frechet": frechet_distance(batched(self.network.means, images), self.truths),
            "texture": TextureEnergy()(images, truth).item(),
            "ssim": ssim(*pair).mean().item(),
            "l1": l1(*pair).mean().item(),
            "pose": (far <= NEAR * self.pictures.size[0]).float().mean().item(),
        }

    def others(self, pictures: Pictures) -> float:
        """Measure the Frechet distance of other people's true pictures, as many."""
        ids = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        images, _ = to_tensors(pictures.at(ids[: len(self.task)].numpy()), torch.device("cpu"))
        return frechet_distance(batched(self.network.means, images), self.truths)

    @torch.no_grad()
    def right_over_wrong(self, discriminator: Discriminator) -> float:
        """Measure the share of true pictures that are preferred with their own pose."""
        count = len(self.task)
        ids = torch.arange(count)
        images, maps = to_tensors(self.pictures.at(ids.numpy()), torch.device("cpu"))
        others = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        others = torch.where(others == ids, (others + 1) % count, others)
        batches = [
            discriminator(images[i], maps[i]) > discriminator(images[i], maps[others[i]])
            for i in ids.split(BATCH)
        ]
        return torch.cat(batches).float().mean().item()


@torch.no_grad()
def batched(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images.split(BATCH)])


@torch.no_grad()
def made(generator: Generator, task: Task) -> Float[Tensor, "n 3 h w"]:
    """Make the pictures of a task, in -1 to 1; noise is the same for every generator."""
    torch.manual_seed(0)
    parts = [part_of(task, ids).batch for ids in torch.arange(len(task)).split(BATCH)]
    return torch.cat([generator(x.source, x.source_maps, x.target_maps).image for x in parts])


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
    words += ["" if case.discriminator else "no D", case.wiring if case.wiring != "paper" else ""]
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


def cells(each: list[dict[str, Any]]) -> list[str]:
    return [cell([x[name] for x in each if name in x], FORMS.get(name, ".3f")) for name in TITLES]


def cell(values: list[float], form: str) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


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
