"""What the runs of the ablation say: tables, two plots and a sheet, with the spread over seeds."""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from matplotlib.transforms import BboxBase
from torch import Tensor

from examples.common.files import replacing
from examples.common.tables import markdown_table
from examples.common.untrusted import BadInput, read_tensors
from examples.images.pose_morphing.measures.sheet import as_pictures, draw_sheet, save_picture

MEASURES = {"psnr": "PSNR dB", "ssim": "SSIM", "l1": "L1", "texture": "texture distance"}
FORMS = {"psnr": ".2f"}
COLOURS = {"GPA": "tab:blue", "NO": "tab:gray", "FULL": "tab:red"}
COLOURS |= {"NYF": "tab:green", "PER": "tab:orange"}
AFTER = {"scores": "time", "scores_at_steps": "steps"}  # runs are compared in equal ones
PLAIN = FormatStrFormatter("%g")
NAMES_AT = ((6, 3), (6, -9), (-6, 3), (-6, -9))  # beside a point, the first that is free

Runs = dict[str, list[dict[str, Any]]]  # by attention, one for each seed


def write_report(out: Path, machine: str, after: str, pivot: str) -> None:
    """Write ablation.md, memory.png and kappa.png from the runs that are finished.

    Args:
        out: Holds `runs`.
        machine: What they ran on.
        after: When they were judged, in words.
        pivot: The attention whose kappa is varied.
    """
    runs = read_runs(out / "runs")
    about = (
        f"The distortion task {after} on one thread, on held-out figures; means over seeds ± "
        f"standard deviation. Machine: {machine}. Memory is that of forward and backward of all "
        "attentions together, one picture, float32; counted is that of the entries of their "
        "affinity matrices alone. GPA<cells>_<kappa>_<short side of Phase 1>; NYF and PER have "
        "that rank; all are full up to the short side that ends the name, and NO has nothing "
        "above it. All have the same affinity."
    )
    parts = [f"## Equal {kind}\n\n{table(runs, key)}" for key, kind in AFTER.items()]
    write_text(out / "ablation.md", "\n\n".join([about, *parts]) + "\n")
    save(out / "memory.png", lambda axes: draw_memory(axes, runs))
    if pivot in runs:
        save(out / "kappa.png", lambda axes: draw_kappas(axes, runs, pivot))


def read_runs(folder: Path) -> Runs:
    runs: Runs = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        runs[found["attention"]].append(found)
    return runs


def table(runs: Runs, key: str = "scores") -> str:
    """Write a row for each attention, the least error first, from the scores under `key`."""
    heads = ["attention", "seeds", "steps in equal time", "step s", "memory MB", "counted MB"]
    none = next((each for name, each in runs.items() if name.startswith("NO")), None)
    rows = []
    for name, each in sorted(runs.items(), key=lambda item: spread(item[1], "l1", key)[0]):
        cells = [
            cell(spread(each, measure, key), FORMS.get(measure, ".4f")) for measure in MEASURES
        ]
        gap = "-" if none is None else f"{spread(each, 'l1', key)[0] / l1_of(none, key):.2f}"
        steps, step_s = each[0]["steps"], each[0]["step_s"]
        counted = f"{counted_mb(each):.2f}" if "attention_entries" in each[0] else "-"
        head = [name, str(len(each)), str(steps), f"{step_s:.3f}", f"{memory_mb(each):.2f}"]
        rows.append([*head, counted, *cells, gap])
    return markdown_table([*heads, *MEASURES.values(), "L1 / that of NO"], rows)


def l1_of(each: list[dict[str, Any]], key: str) -> float:
    return spread(each, "l1", key)[0]


def spread(each: list[dict[str, Any]], measure: str, key: str = "scores") -> tuple[float, float]:
    """Compute the mean over seeds and the standard deviation, NaN for one seed."""
    return spread_of([run[key][measure]["mean"] for run in each])


def spread_of(values: list[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else math.nan


def cell(found: tuple[float, float], form: str) -> str:
    middle, deviation = found
    return f"{middle:{form}}" + ("" if math.isnan(deviation) else f" ± {deviation:{form}}")


def memory_mb(each: list[dict[str, Any]]) -> float:
    return sum(each[0]["attention_bytes"].values()) / 1e6


def counted_mb(each: list[dict[str, Any]]) -> float:
    return 4 * sum(each[0]["attention_entries"].values()) / 1e6


def write_errors(folder: Path, path: Path) -> None:
    """Draw Figure 5b: what each attention makes of some test pictures, and below its errors.

    The least error of those pictures comes first.

    Args:
        folder: Holds a file of pictures for each attention, and "truth.safetensors".
        path: Of the sheet.

    Raises:
        BadInput: There are no pictures.
    """
    shown = read_shown(folder)
    truth = shown.pop("truth")
    columns = {"truth": as_pictures(truth)}
    errors = {
        name: (images - truth).abs().mean(dim=1, keepdim=True) for name, images in shown.items()
    }
    for name in sorted(shown, key=lambda name: errors[name].mean().item()):
        error = (2 * errors[name].clamp(max=1) - 1).expand_as(truth)
        columns[name.replace("+", " +")] = [*as_pictures(shown[name]), *as_pictures(error)]
    save_picture(draw_sheet(columns, enlarged=2), path)


def read_shown(folder: Path) -> dict[str, Float[Tensor, "n 3 h w"]]:
    """Read the test pictures that were kept of each attention, in -1 to 1, the truth first.

    Raises:
        BadInput: There are none.
    """
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stem != "truth")
    if not files or files[0].stem != "truth":
        raise BadInput(f"{folder} holds no pictures; run the study first")
    return {path.stem: read_tensors(path)["images"].float() / 127.5 - 1 for path in files}


def draw_memory(axes: Axes, runs: Runs) -> None:
    """Draw Figure 5: error against memory, of attentions without additions."""
    places = {}
    for name, each in runs.items():
        if "+" in name:
            continue
        middle, deviation = spread(each, "l1")
        bar = None if math.isnan(deviation) else deviation
        axes.errorbar(memory_mb(each), middle, bar, fmt="o", color=colour(name))
        places[name] = (memory_mb(each), middle)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(PLAIN)
    axes.set_xlabel("memory of all attentions, MB")
    axes.set_ylabel("L1 on held-out pictures")
    axes.margins(0.15)
    write_names(axes, places)


def write_names(axes: Axes, places: dict[str, tuple[float, float]]) -> None:
    """Write a name beside each point, where no other name is."""
    axes.get_xlim()  # settles where points are
    taken: list[BboxBase] = []
    for name, place in places.items():
        for offset in NAMES_AT:
            side = "left" if offset[0] > 0 else "right"
            text = axes.annotate(
                name, place, textcoords="offset points", xytext=offset, ha=side, fontsize=7
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or offset == NAMES_AT[-1]:
                break
            text.remove()
        taken.append(box)


def colour(name: str) -> str:
    return next(colour for kind, colour in COLOURS.items() if name.startswith(kind))


def draw_kappas(axes: Axes, runs: Runs, pivot: str) -> None:
    """Draw Figure 7: error against kappa, trained with it, and of the pivot reading others."""
    cells, _, short_side = pivot.removeprefix("GPA").split("_")
    trained = {
        int(name.split("_")[1]): each
        for name, each in runs.items()
        if name.startswith(f"GPA{cells}_") and name.endswith(f"_{short_side}")
    }
    for key, kind in AFTER.items():
        found = {kappa: spread(each, "l1", key) for kappa, each in trained.items()}
        draw_line(axes, found, f"trained with kappa, in equal {kind}")
    reading = {
        int(kappa): spread_of([run["read"][kappa]["l1"]["mean"] for run in runs[pivot]])
        for kappa in runs[pivot][0]["read"]
    }
    draw_line(axes, reading, f"{pivot}, then reading kappa")
    kappas = sorted(trained | reading)
    axes.set_xscale("log", base=2)
    axes.set_xticks(kappas, [str(kappa) for kappa in kappas])
    axes.set_xlabel("kappa")
    axes.set_ylabel("L1 on held-out pictures")
    axes.legend(fontsize=8)


def draw_line(axes: Axes, points: dict[int, tuple[float, float]], label: str) -> None:
    kappas = sorted(points)
    middles = [points[kappa][0] for kappa in kappas]
    bars = [0.0 if math.isnan(points[kappa][1]) else points[kappa][1] for kappa in kappas]
    axes.errorbar(kappas, middles, bars, fmt="o-", capsize=3, label=label)


def save(path: Path, draw: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    draw(figure.add_subplot())
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)
