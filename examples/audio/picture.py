"""A picture: the damaged, the restored and the true recording, and where gaps were copied from."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from jaxtyping import Bool, Float
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Arc
from torch import Tensor

from examples.audio.align import Copy
from examples.audio.gaps import gaps_in
from examples.audio.spectrum import RATE, spectrum
from examples.common.figures import save_figure

LONGEST_S = 20.0  # shown of a recording
RANGE_DB = 80.0


def draw(
    path: Path,
    waves: dict[str, Float[Tensor, " n"]],
    known: Bool[Tensor, " n"],
    copies: list[list[Copy]],
) -> None:
    """Draw spectrograms by name, and below them an arc from each gap to its best source.

    Of a long recording the part with the most missing is shown; an arc to a place outside
    leaves the picture.
    """
    first, last = busiest(known)
    figure, axes = pyplot.subplots(
        len(waves) + 1, 1, figsize=(12, 2.1 * len(waves) + 1.8), sharex=True, layout="constrained"
    )
    loudest = max(spectrum(wave[None, first:last]).abs().max().item() for wave in waves.values())
    for axis, (name, wave) in zip(axes, waves.items()):
        show(axis, wave[first:last], first / RATE, loudest)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    for start, end in gaps_in(known):
        axes[0].axvspan(start / RATE, end / RATE, color="white", alpha=0.6, linewidth=0)
    arcs(axes[-1], known, copies)
    axes[-1].set_xlim(first / RATE, last / RATE)
    axes[-1].set_xlabel("seconds")
    save_figure(figure, path, dpi=100)
    pyplot.close(figure)


def busiest(known: Bool[Tensor, " n"]) -> tuple[int, int]:
    length = min(len(known), round(LONGEST_S * RATE))
    missing = torch.cat([torch.zeros(1), (~known).double().cumsum(0)])
    starts = torch.arange(0, len(known) - length + 1, RATE // 4)
    best = int(starts[(missing[starts + length] - missing[starts]).argmax()])
    return best, best + length


def show(axis: Axes, wave: Float[Tensor, " n"], start_s: float, loudest: float) -> None:
    level = 20 * (spectrum(wave[None])[0].abs() / loudest).clamp(min=1e-6).log10()
    extent = (start_s, start_s + len(wave) / RATE, 0, RATE / 2000)
    axis.imshow(
        level.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
    )


def arcs(axis: Axes, known: Bool[Tensor, " n"], copies: list[list[Copy]]) -> None:
    """Draw gaps as bars on a line of time; the surer a copy, the darker its arc."""
    best = [some[0] for some in copies if some]
    longest = max((abs(copy.lag) for copy in best), default=RATE) / RATE
    for start, end in gaps_in(known):
        axis.plot([start / RATE, end / RATE], [0, 0], color="black", linewidth=4)
    for copy in best:
        to = (copy.start + copy.end) / 2 / RATE
        width, shade = copy.lag / RATE, max(0.15, copy.likeness)
        middle = (to - width / 2, 0)
        colour = "tab:blue" if width > 0 else "tab:orange"
        height = 2 * abs(width) / longest
        arc = Arc(middle, abs(width), height, theta1=0, theta2=180, color=colour, alpha=shade)
        axis.add_patch(arc)
        axis.plot(to - width, 0, "o", color=colour, markersize=3, alpha=shade)
    axis.set_ylim(-0.1, 1.1)
    axis.set_yticks([])
    axis.set_title(
        "gaps (black) and where they were copied from: earlier (blue), later (orange)",
        loc="left",
        fontsize=10,
    )
