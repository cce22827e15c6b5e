"""What `compare` found: a table at equal processor time, curves, and a sheet of pictures.

    python -m examples.images.gan.studies.report --runs runs/gans --data FOLDER

Writes gans.json, gans.md, gans_curves.png and gans_sheet.png. The first table averages the
seeds of a case at the longest time that all runs have had; the second has every run as it is now.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import tyro
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.commands import check_count, command, set_threads
from examples.common.figures import save_figure
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.common.untrusted import BadInput
from examples.images.gan.data import Pictured, open_data
from examples.images.gan.measures import Measures, made_by, some_real
from examples.images.gan.quick import GPA
from examples.images.gan.studies.compare import Case, cases, curve_of
from examples.images.gan.systems import latent_width
from examples.images.gan.trained import load

TITLES = {"hit": "HiT", "ylg": "Your Local GAN", "sagan": "SAGAN", "stylenat": "StyleNAT"}
TITLES |= {"stylegan2": "StyleGAN2"}
OWN = {"hit": "MultiAxis", "ylg": "LocalSparse", "sagan": "Full", "stylenat": "Hydra"}
FEATURES = {
    "form": "a network that finds the key points of heads in any colours; this is no FID",
    "colours": "the mean colours of 4x4 squares",
    "inception": "Inception-v3 with weights of torchvision; this is no FID",
    "fid": "the published Inception-v3",
}
Measured = dict[Case, dict[str, float]]
ABOUT = """\
Networks of the tiny presets (32x32, batches of 16) trained on one core each to make the heads of
drawn figures; the settings are those of `examples/images/gan/quick.py`. The first table is read at
{seconds:.0f} s of processor time, which every run has had, from the measures along the training, or
at the first measure of a run where that came later: the column s says when. The second says where
each run stands now.
The distances are Frechet distances between features of {pictures} made and as many real pictures;
precision and recall are those of Kynkäänniemi et al. with 3 neighbours, in the first features.
{features}

{machine}. {note}"""


@dataclass(frozen=True)
class Options:
    """Report what has been trained so far."""

    runs: Path
    data: str  # as of `compare`
    out: Path = Path("benchmarks/results")
    seeds: int = 2
    pictures: int = 512  # as of `compare`
    shown: int = 16  # of each run
    inception: Path | None = None  # as of `compare`
    note: str = ""  # at the end of what is said of the machine


def main(options: Options) -> None:
    """Write the table, the curves and the sheet."""
    for name in ("seeds", "pictures", "shown"):
        check_count(f"--{name}", getattr(options, name))
    check_folder(options.out)
    set_threads(1)
    every = [case for seed in range(options.seeds) for case in cases(seed)]
    curves = {case: curve for case in every if (curve := curve_of(options.runs / case.name))}
    if not curves:
        raise BadInput(f"{options.runs} holds no measured run")
    features = distances(curves)
    pictured = open_data(options.data, 32)
    half = min(options.pictures, len(pictured.images) // 2)
    real = Measures.of(pictured, half, options.inception)(some_real(pictured, half, skip=half))
    at = min(times(curve)[-1] for curve in curves.values())
    found = {case: at_time(curve, at) for case, curve in curves.items()}
    newest = {case: at_time(curve, times(curve)[-1]) for case, curve in curves.items()}
    write_json(
        options.out / "gans.json",
        {
            "seconds": at,
            "machine": machine(),
            "real": real,
            "runs": {case.name: {"at": found.get(case), "curve": curves[case]} for case in curves},
        },
    )
    about = ABOUT.format(
        seconds=at,
        pictures=options.pictures,
        features="\n".join(f"* {short(x)}: {FEATURES.get(short(x), short(x))}." for x in features),
        machine=machine(),
        note=options.note,
    )
    text = page(found, newest, real, features, about)
    write_text(options.out / "gans.md", text)
    save_figure(draw_curves(curves, features, at), options.out / "gans_curves.png", 110)
    save_figure(draw_sheet(options, list(curves), pictured), options.out / "gans_sheet.png", 110)
    print(text)


def distances(curves: dict[Case, dict[str, dict[str, float]]]) -> list[str]:
    """List the Frechet distances that were measured, the same in all runs.

    Raises:
        BadInput: A run was measured by other features than the first.
    """
    found = {
        case.name: [x for x in next(iter(curve.values())) if x.startswith("frechet_")]
        for case, curve in curves.items()
    }
    (first, features), *others = found.items()
    for name, also in others:
        if also != features:
            raise BadInput(f"{name} was measured by {also}, {first} by {features}: train it anew")
    return features


def times(curve: dict[str, dict[str, float]]) -> list[float]:
    """Return the processor time at each measure, in s."""
    return np.cumsum([point["interval_s"] for point in curve.values()]).tolist()


def at_time(curve: dict[str, dict[str, float]], seconds: float) -> dict[str, float]:
    """Interpolate all measures, and the steps taken, at a time before the last.

    Before the first measure they are those of the first.
    """
    along = times(curve)
    seconds = max(seconds, along[0])
    columns: dict[str, list[float]] = {"steps": [float(step) for step in curve], "s": along}
    for point in curve.values():
        for name in point.keys() - {"interval_s"}:
            columns.setdefault(name, []).append(point[name])
    return {name: float(np.interp(seconds, along, x)) for name, x in columns.items()}


def attention_of(case: Case) -> str:
    return GPA if case.attention == "gpa" else OWN.get(case.system, "none")


def label(case: Case) -> str:
    return f"{TITLES[case.system]}, {attention_of(case)}"


def short(feature: str) -> str:
    return feature.removeprefix("frechet_")


def page(
    found: Measured, newest: Measured, real: dict[str, float], features: list[str], about: str
) -> str:
    """Write the tables; the last row of each is real pictures against other real ones."""
    return "\n".join(
        [
            "# Generators at equal processor time",
            "",
            about,
            "",
            table(found, real, features),
            "",
            table_of_runs(newest, real, features),
            "",
            "![Frechet distances along the training](gans_curves.png)",
            "",
            "![Pictures of the same latents, real ones in the last row](gans_sheet.png)",
            "",
        ]
    )


def table(found: Measured, real: dict[str, float], features: list[str]) -> str:
    """Make a row of each case, over its seeds."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for case, each in found.items():
        groups[TITLES[case.system], attention_of(case)].append(each)
    rows = [([*name, str(len(each))], each) for name, each in groups.items()]
    return table_of("seeds", rows, real, features)


def table_of_runs(found: Measured, real: dict[str, float], features: list[str]) -> str:
    """Make a row of each run."""
    rows = [
        ([TITLES[case.system], attention_of(case), str(case.seed)], [each])
        for case, each in found.items()
    ]
    return table_of("seed", rows, real, features)


def table_of(
    seeds: str,
    rows: list[tuple[list[str], list[dict[str, float]]]],
    real: dict[str, float],
    features: list[str],
) -> str:
    distances = dict.fromkeys(features, ".3f")
    forms = {"s": ".0f", "steps": ".0f", **distances, "precision": ".2f", "recall": ".2f"}
    of_real = cells([real], {name: form for name, form in forms.items() if name in real})
    lines = [[*name, *cells(each, forms)] for name, each in rows]
    lines.append(["real pictures", "", "", "", "", *of_real])
    heads = ["system", "attention", seeds, "s", "steps", *map(short, features)]
    return markdown_table([*heads, "precision", "recall"], lines)


def cells(each: list[dict[str, float]], forms: dict[str, str]) -> list[str]:
    return [spread(each, name, form) for name, form in forms.items()]


def spread(each: list[dict[str, float]], name: str, form: str) -> str:
    values = [x[name] for x in each]
    more = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{more}"


def draw_curves(curves: dict[Case, Any], features: list[str], at: float) -> Figure:
    """Draw each Frechet distance over processor time, GPA dashed."""
    figure = Figure(figsize=(5.5 * len(features), 4.5), layout="constrained")
    systems = list(TITLES)
    for axes, feature in zip(figure.subplots(1, len(features), squeeze=False)[0], features):
        for case, curve in curves.items():
            axes.plot(
                np.array(times(curve)) / 60,
                [point[feature] for point in curve.values()],
                color=f"C{systems.index(case.system)}",
                linestyle="--" if case.attention == "gpa" else "-",
                marker=".",
                label=label(case) if case.seed == 0 else None,
            )
        axes.axvline(at / 60, color="0.8", zorder=0)
        axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.set_xlabel("minutes of one core")
        axes.set_ylabel(f"Frechet distance, {short(feature)}")
    axes.legend(fontsize=7)
    return figure


def draw_sheet(options: Options, some: list[Case], pictured: Pictured) -> Figure:
    """Show pictures of the newest averaged weights of each run of the first seed."""
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, Tensor] = {}
    for case in some:
        if case.seed == 0:
            trained = load(options.runs / case.name)
            latents = torch.randn(
                options.shown, latent_width(trained.model), generator=generator.manual_seed(0)
            )
            made = made_by(trained.generator, latents, pictured.classes)
            name = f"{TITLES[case.system]}\n{attention_of(case)}\n{trained.steps} steps"
            rows[name] = made
    rows["real"] = some_real(pictured, options.shown)
    figure = Figure(figsize=(0.62 * options.shown + 2, 0.66 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows.items()):
        axes.imshow(rearrange((images.clamp(-1, 1) + 1) / 2, "b c h w -> h (b w) c").numpy())
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
