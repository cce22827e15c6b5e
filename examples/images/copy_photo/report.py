"""The table, the verdict and the picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.files import replacing
from examples.images.copy_photo.data import Task
from examples.images.copy_photo.restore import Result
from ndgpa.analysis import draw_key_lines

ERROR_GAIN = 3  # absolute errors are drawn so many times brighter


@dataclass(frozen=True)
class Case:
    """A photograph at one size, and what every method made of it; the last method is to win.

    `resampled` stands in the table beside the attentions.
    """

    photo: str
    task: Task
    results: list[Result]
    resampled: Result

    @property
    def size(self) -> int:
        return self.task.source.shape[-1]


# The table


def write_tables(out: Path, cases: list[Case]) -> str:
    """table.json and table.md; the Markdown with the verdict is also returned."""
    rows = [_row(case, result) for case in cases for result in (*case.results, case.resampled)]
    text = f"{_markdown(rows)}\n\n{verdict(cases)}\n"
    with replacing(out / "table.json") as part:
        part.write_text(json.dumps({"rows": rows, "verdict": verdict(cases)}, indent=2))
    with replacing(out / "table.md") as part:
        part.write_text(text)
    return text


def _row(case: Case, result: Result) -> dict[str, Any]:
    return {
        "photo": case.photo,
        "size": case.size,
        "method": result.method,
        "psnr_db": result.psnr_db,
        "ssim": result.ssim,
        "seconds": result.seconds,
        "attention_s": result.attention_s,
        "attention_mb": None if result.attention_bytes is None else result.attention_bytes / 1e6,
        "coverage": result.coverage,
    }


def _markdown(rows: list[dict[str, Any]]) -> str:
    heads = "photo", "size", "method", "PSNR dB", "SSIM", "seconds", "attention s", "MB", "coverage"
    forms = "", "", "", ".2f", ".4f", ".2f", ".2f", ".0f", ".3f"
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        lines.append([_cell(value, form) for value, form in zip(row.values(), forms)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def verdict(cases: list[Case]) -> str:
    """Who won, by PSNR and by SSIM, in a sentence for each size."""
    sentences = []
    for size in sorted({case.size for case in cases}):
        here = [case for case in cases if case.size == size]
        last = here[0].results[-1].method
        wins = {
            name: sum(max(case.results, key=key) is case.results[-1] for case in here)
            for name, key in (("PSNR", lambda r: r.psnr_db), ("SSIM", lambda r: r.ssim))
        }
        others = [[case.results[place] for case in here] for place in (1, 2)]
        others.append([case.resampled for case in here])
        leads = [
            f"{mean(c.results[-1].psnr_db - o.psnr_db for c, o in zip(here, other)):+.1f} dB on "
            f"{other[0].method}"
            for other in others
        ]
        sentences.append(
            f"At {size}x{size} {last} is the best attention on {wins['PSNR']} of {len(here)} "
            f"photographs by PSNR and on {wins['SSIM']} of {len(here)} by SSIM; on average "
            f"{', '.join(leads)}."
        )
    return " ".join(sentences)


# The picture


def write_picture(path: Path, cases: list[Case]) -> None:
    """For each photograph at the smallest size: pictures, a detail, errors; then key lines."""
    size = min(case.size for case in cases)
    shown = [case for case in cases if case.size == size]
    columns = 2 + len(shown[0].results)
    heights = [1.0, 1.0, 1.0] * len(shown) + [2.6]
    figure = Figure(figsize=(1.75 * columns, 1.82 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for number, case in enumerate(shown):
        axes = [
            [figure.add_subplot(grid[3 * number + row, column]) for column in range(columns)]
            for row in range(3)
        ]
        _draw_case(axes, case)
    lines = figure.add_subplot(grid[-1, :])
    _draw_lines(lines, shown[0])
    with replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")


def _draw_case(axes: list[list[Axes]], case: Case) -> None:
    target = case.task.target[0]
    images = [case.task.source[0], *(r.image for r in case.results), target]
    titles = ["source M", *(r.method for r in case.results), "truth tau(M)"]
    top, left = _detail(target)
    side = case.size // 4
    for column, (image, title) in enumerate(zip(images, titles)):
        for row in range(3):
            axes[row][column].set_axis_off()
        _show(axes[0][column], image)
        axes[0][column].set_title(title, fontsize=9)
        if column == 0:
            continue
        _show(axes[1][column], image[:, top : top + side, left : left + side])
        if column < len(images) - 1:
            result = case.results[column - 1]
            _show(axes[2][column], ERROR_GAIN * (image - target).abs())
            axes[2][column].set_title(f"{result.psnr_db:.1f} dB  {result.ssim:.3f}", fontsize=8)
    for row, text in ((1, f"{case.photo}:\na detail"), (2, f"absolute error\ntimes {ERROR_GAIN}")):
        axes[row][0].text(0.5, 0.5, text, ha="center", va="center", fontsize=9)


def _draw_lines(axes: Axes, case: Case) -> None:
    result = case.results[-1]
    lines = result.lines
    assert lines is not None
    restored, source = result.image, case.task.source[0]
    draw_key_lines(axes, restored, source, lines.queries, lines.keys, lines.weights)
    axes.set_title(
        f"where six pixels read: {result.method} (left) in the source (right)", fontsize=9
    )


def _detail(image: Float[Tensor, "3 h w"]) -> tuple[int, int]:
    """Top and left of the quarter-size window with the most fine detail, near the middle."""
    side = image.shape[-1] // 4
    edges = image.diff(dim=1)[:, :, 1:].abs() + image.diff(dim=2)[:, 1:].abs()
    energy = torch.nn.functional.avg_pool2d(edges.mean(dim=0)[None], side, stride=side // 4)[0]
    rows, columns = energy.shape
    middle = energy[rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
    row, column = divmod(int(middle.argmax()), middle.shape[1])
    return (row + rows // 4) * (side // 4), (column + columns // 4) * (side // 4)


def _show(axes: Axes, image: Float[Tensor, "3 h w"]) -> None:
    axes.imshow(rearrange(image.clamp(0, 1), "c h w -> h w c").numpy(), interpolation="nearest")
