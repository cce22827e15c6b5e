"""The report of an evaluation: tables and contact sheets."""

import math
import os
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from examples.common.tables import processor
from examples.images.pose_morphing.measures.sheet import (
    Picture,
    as_pictures,
    draw_sheet,
    side_by_side,
)
from examples.images.pose_morphing.measures.tasks import Task
from examples.people.keypoints import draw_skeleton

Scores = dict[str, Float[Tensor, " n"]]  # by measure, one number a picture
Summary = dict[str, dict[str, float]]  # by measure: mean, standard error, count

BLANK = 245  # grey of what a skeleton is drawn on
ABOUT = """Pictures are in 0 to 1 for PSNR, SSIM and L1. PSNR ranks blur above sharp copies that are
a pixel off: look at the others too, and at the pictures. Copyable pixels are those that the source
shows too. SSIM (PATN) pads with white to squares and takes the range of the picture. Texture
distance is the loss of that name, perceptual distance compares pictures and features of VGG-16;
both see values from -1 to 1. Key distance is how far the strongest key of the finest attention lies
from the true source, in pixels of a picture of 128 rows: the median over copyable pixels. Attention
memory is the most that forward and backward of one attention hold at once, for one picture in
float32."""
FORMS = {"psnr": ".2f", "copyable_psnr": ".2f", "key_px": ".1f"}
TITLES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "ssim_patn": "SSIM (PATN)",
    "l1": "L1",
    "copyable_psnr": "copyable PSNR dB",
    "copyable_ssim": "copyable SSIM",
    "texture": "texture distance",
    "perceptual": "perceptual distance",
    "key_px": "key distance px",
    "acc3": "keys within 3 px",
    "acc6": "keys within 6 px",
}


def summary(scores: Scores) -> Summary:
    """Summarise every measure; pictures for which it is not defined (NaN) are left out."""
    return {name: summary_of(values) for name, values in scores.items()}


def summary_of(values: Float[Tensor, " n"]) -> dict[str, float]:
    values = values[values.isfinite()].double()
    count = len(values)
    error = values.std().item() / math.sqrt(count) if count > 1 else math.nan
    return {"mean": values.mean().item(), "standard_error": error, "count": count}


def differences(scores: Scores, others: Scores) -> Scores:
    """Picture by picture, which takes out how hard the pictures are."""
    return {name: values - others[name] for name, values in scores.items() if name in others}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Write a table of summaries; a row for each name, a column for each measure."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        "| | " + " | ".join(TITLES.get(name, name) for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for label, row in rows.items():
        cells = [cell(row.get(name), FORMS.get(name, ".3f")) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: dict[str, float] | None, form: str) -> str:
    if found is None or not found["count"]:
        return "-"
    return f"{found['mean']:{form}} ± {found['standard_error']:{form}}"


def machine(device: str) -> str:
    """Name the machine that the numbers were measured on."""
    said = f"{os.cpu_count()} cores ({processor()}), torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {said}" if "cuda" in device else said


def contact_sheet(
    task: Task, images: dict[str, Tensor], rows: int, blocks: int = 1
) -> PIL.Image.Image:
    """Draw the first of the task, with what every model made of it, in several blocks of rows.

    Args:
        images: What each model made, from -1 to 1.
        rows: Of a block.
        blocks: How many are side by side.
    """
    sheets = [
        draw_sheet(columns_of(task, images, slice(first, first + rows)))
        for first in range(0, min(rows * blocks, len(task)), rows)
    ]
    return side_by_side(sheets)


def columns_of(task: Task, images: dict[str, Tensor], chosen: slice) -> dict[str, list[Picture]]:
    """Source, pose, truth, and the picture of every model."""
    batch = task.batch
    poses = [skeleton(points, batch.truth.shape[2:]) for points in task.target_points[chosen]]
    columns = {"source": as_pictures(batch.source[chosen]), "pose": poses}
    columns["truth"] = as_pictures(batch.truth[chosen])
    return columns | {name: as_pictures(x[chosen]) for name, x in images.items()}


def skeleton(points: np.ndarray, size: tuple[int, int]) -> Picture:
    return draw_skeleton(np.full((*size, 3), BLANK, np.uint8), points)


def as_markdown(report: dict[str, Any]) -> str:
    """Write the report to read."""
    lines = [
        f"Machine: {report['machine']}. VGG-16: {report['vgg']}.",
        "",
        "Means over pictures, with standard errors.",
    ]
    for name, found in report["tasks"].items():
        lines += ["", f"## {name.capitalize()}, {found['pictures']} held-out pictures", ""]
        lines += [markdown(found["scores"])]
        if found["differences"]:
            lines += ["", "Picture by picture:", "", markdown(found["differences"])]
        for key in found:
            if key.startswith(("frechet", "fid")):
                values = ", ".join(f"{model} {x:.3f}" for model, x in found[key].items())
                lines += ["", f"{key.replace('_', ' ')}: {values}."]
    lines += ["", "## Models", "", model_table(report["models"]), "", ABOUT, ""]
    return "\n".join(lines)


def model_table(models: dict[str, Any]) -> str:
    lines = [
        "| | attention | parameters | steps | attention memory MB, by size |",
        "|---|---|---|---|---|",
    ]
    for name, said in models.items():
        sizes = said["attention_bytes"].items()
        memory = ", ".join(f"{size}: {count / 1e6:.2f}" for size, count in sizes)
        steps = f"{said['steps_taken']:,}{' more' if 'start' in said else ''}"
        lines.append(
            f"| {name} | {said['attention']} | {said['parameters']:,} | {steps} | {memory} |"
        )
    return "\n".join(lines)
