"""The report of an evaluation: a text with tables, and contact sheets."""

from typing import Any

import numpy as np
import PIL.Image

from examples.images.pose_morphing.measures.scores import Rendered
from examples.images.pose_morphing.measures.table import markdown
from examples.images.pose_morphing.measures.tasks import Task
from examples.images.pose_morphing.sheet import Picture, as_pictures, draw_sheet
from examples.people.keypoints import draw_skeleton

BLANK = 245  # grey of what a skeleton is drawn on
ABOUT = """Pictures are in 0 to 1 for PSNR, SSIM and L1. PSNR ranks blur above sharp copies that are
a pixel off: look at the others too, and at the pictures. Copyable pixels are those that the source
shows too. SSIM (PATN) pads with white to squares and takes the range of the picture. Texture
distance is the loss of that name, perceptual distance compares features of VGG-16; both see values
from -1 to 1. Key distance is how far the strongest key of the finest attention lies from the true
source, in pixels of a picture of 128 rows: the median over copyable pixels. Attention memory is the
most that forward and backward of one attention hold at once, for one picture in float32."""


def contact_sheet(
    task: Task, rendered: dict[str, Rendered], rows: int, blocks: int = 1
) -> PIL.Image.Image:
    """The first of the task, with what every model made of it, in several blocks side by side."""
    sheets = [
        draw_sheet(columns_of(task, rendered, slice(first, first + rows)))
        for first in range(0, min(rows * blocks, len(task)), rows)
    ]
    wide = PIL.Image.new("RGB", (sum(x.width for x in sheets), sheets[0].height), "white")
    left = 0
    for sheet in sheets:
        wide.paste(sheet, (left, 0))
        left += sheet.width
    return wide


def columns_of(
    task: Task, rendered: dict[str, Rendered], chosen: slice
) -> dict[str, list[Picture]]:
    """Source, pose, truth, and the picture of every model."""
    batch = task.batch
    poses = [skeleton(points, batch.truth.shape[2:]) for points in task.target_points[chosen]]
    columns = {"source": as_pictures(batch.source[chosen]), "pose": poses}
    columns["truth"] = as_pictures(batch.truth[chosen])
    return columns | {name: as_pictures(x.images[chosen]) for name, x in rendered.items()}


def skeleton(points: np.ndarray, size: tuple[int, int]) -> Picture:
    return draw_skeleton(np.full((*size, 3), BLANK, np.uint8), points)


def as_markdown(report: dict[str, Any]) -> str:
    """The report to read."""
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
        lines.append(
            f"| {name} | {said['attention']} | {said['parameters']:,} | {said['steps_taken']:,} "
            f"| {memory} |"
        )
    return "\n".join(lines)
