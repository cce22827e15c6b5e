"""The picture: what each method made, its errors, and where pixels read."""

from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.figures import save_figure, show_picture
from examples.images.copy_photo.report import Case
from ndgpa.analysis import draw_key_lines

ERROR_GAIN = 3  # absolute errors are drawn so many times brighter


def write_picture(path: Path, cases: list[Case]) -> None:
    """Draw for each photograph at the smallest size pictures, a detail, errors; then key lines."""
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
    save_figure(figure, path, dpi=100)


def _draw_case(axes: list[list[Axes]], case: Case) -> None:
    target = case.task.target[0]
    images = [case.task.source[0], *(r.image for r in case.results), target]
    titles = ["source M", *(r.method for r in case.results), "truth tau(M)"]
    top, left = _detail(target)
    side = case.size // 4
    for column, (image, title) in enumerate(zip(images, titles)):
        for row in range(3):
            axes[row][column].set_axis_off()
        show_picture(axes[0][column], image)
        axes[0][column].set_title(title, fontsize=9)
        if column == 0:
            continue
        show_picture(axes[1][column], image[:, top : top + side, left : left + side])
        if column < len(images) - 1:
            result = case.results[column - 1]
            show_picture(axes[2][column], ERROR_GAIN * (image - target).abs())
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
    """Return top and left of the quarter-size window with the most fine detail, near the middle."""
    side = image.shape[-1] // 4
    edges = image.diff(dim=1)[:, :, 1:].abs() + image.diff(dim=2)[:, 1:].abs()
    energy = torch.nn.functional.avg_pool2d(edges.mean(dim=0)[None], side, stride=side // 4)[0]
    rows, columns = energy.shape
    middle = energy[rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
    row, column = divmod(int(middle.argmax()), middle.shape[1])
    return (row + rows // 4) * (side // 4), (column + columns // 4) * (side // 4)
