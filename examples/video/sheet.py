"""The contact sheet: what was damaged, what was made of it, and from when and where it was copied.

Shapes: t frames, h w pixels, s queries, y keys.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.figures import save_figure, show_picture
from examples.video.attention import KAPPA, Spaces, rule
from examples.video.model import Filling, FillNet, Sketch
from ndgpa import select
from ndgpa.analysis import key_weights

SHOWN = 8  # frames
FAINTEST = 0.05  # lines of less opacity are not drawn
GAP = 4  # pixels between frames of the strip
TALLEST = 40.0  # inches, whatever the shape of the frames


def draw_sheet(
    path: Path,
    net: FillNet,
    sketch: Sketch,
    filling: Filling,
    truth: Float[Tensor, "t 3 h w"] | None,
    kappa: int = KAPPA,
) -> None:
    """Draw rows of frames, then the damaged clip with lines from holes to their keys."""
    count, _, height, width = sketch.frames.shape
    chosen = torch.linspace(0, count - 1, min(SHOWN, count)).round().long()
    rows = {"damaged": sketch.frames, "filled": filling.frames}
    if truth is not None:
        rows["truth"] = truth
    tall = 14 / len(chosen) * height / width * (len(rows) + 1.6)
    figure = Figure(figsize=(14, min(tall, TALLEST)), layout="constrained")
    parts = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[1] * (len(rows) + 1))
    for place, (name, frames) in enumerate(rows.items()):
        axes = figure.add_subplot(parts[place])
        strip(axes, frames[chosen])
        axes.set_title(f"{name}: frames {', '.join(map(str, chosen.tolist()))}", fontsize=8)
    axes = figure.add_subplot(parts[-1])
    draw_lines(axes, net, sketch, kappa)
    save_figure(figure, path, dpi=110)


def strip(axes: Axes, frames: Float[Tensor, "t 3 h w"]) -> None:
    """Show frames side by side."""
    axes.set_axis_off()
    height, width = frames.shape[2:]
    for place, frame in enumerate(frames):
        left = place * (width + GAP)
        extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
        show_picture(axes, frame, extent)
    axes.set_xlim(-0.5, len(frames) * (width + GAP) - GAP - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


@torch.no_grad()
def draw_lines(axes: Axes, net: FillNet, sketch: Sketch, kappa: int, queries: int = 4) -> None:
    """Draw what the first head reads for some pixels in holes of a frame near the middle.

    Each key is drawn in the shown frame that is nearest to its own.
    """
    spaces = Spaces.of(sketch.known)
    size = sketch.known[0].numel()
    asked = some_queries(spaces, size, len(sketch.known), queries)
    address = net.address(sketch, net.embedding(sketch)[0])
    seen = sketch.known.flatten()[None]
    given = (address[:, :, spaces.sites], address)
    options = {
        "key_structure": spaces.clip,
        "scale": 1.0,
        "affinity": "euclidean",
        "key_mask": seen,
    }
    selection = select(*given, spaces.holes, rule(kappa), **options)
    keys, weights = key_weights(*given, selection, spaces.holes, asked, **options)
    keys, weights = keys[0, 0], weights[0, 0]
    frames = shown_frames(spaces.sites[asked] // size, keys, weights, size)
    strip(axes, sketch.frames[frames])
    width = sketch.known.shape[3]
    for number, site in enumerate(spaces.sites[asked].tolist()):
        start = spot(site, frames, size, width)
        ends = [spot(key, frames, size, width) for key in keys[number].tolist()]
        shade = weights[number] / weights[number].max().clamp(min=1e-9)
        connect(axes, start, ends, shade, f"C{number}")
    axes.set_title(
        f"what pixels in the holes of frame {spaces.sites[asked[0]] // size} read: "
        f"frames {', '.join(map(str, frames.tolist()))}",
        fontsize=8,
    )


def some_queries(spaces: Spaces, size: int, count: int, queries: int) -> Int[Tensor, " s"]:
    """Choose sites of holes, spread over the frame nearest to the middle that has any."""
    frame_of = spaces.sites // size
    frames, holes = frame_of.unique(return_counts=True)
    partly = frames[holes < size]
    frames = partly if len(partly) else frames
    frame = frames[(frames - count // 2).abs().argmin()]
    sites = (frame_of == frame).nonzero()[:, 0]
    spread = torch.linspace(0.08, 0.92, queries)
    return sites[(spread * (len(sites) - 1)).long()]


def shown_frames(
    own: Int[Tensor, " s"], keys: Int[Tensor, "s y"], weights: Float[Tensor, "s y"], size: int
) -> Int[Tensor, " f"]:
    """Choose the queries' frame and those that matter most to them, in order of time."""
    mass = torch.zeros(int(keys.max()) // size + 2)
    mass.index_add_(0, keys.clamp(min=0).flatten() // size, weights.flatten().float())
    best = mass.topk(min(SHOWN - 1, len(mass))).indices
    best = best[mass[best] > 0]
    return torch.cat([own[:1], best]).unique()[:SHOWN]


def spot(site: int, frames: Int[Tensor, " f"], size: int, width: int) -> tuple[float, float] | None:
    """Find where a site is on the strip, across and down; None where its frame is not shown."""
    frame, pixel = divmod(site, size)
    place = (frames == frame).nonzero()
    if site < 0 or len(place) == 0:
        return None
    return int(place[0, 0]) * (width + GAP) + pixel % width, pixel // width


def connect(
    axes: Axes,
    start: tuple[float, float] | None,
    ends: list[tuple[float, float] | None],
    shade: Float[Tensor, " y"],
    colour: str,
) -> None:
    if start is None:
        return
    for end, opacity in zip(ends, shade.tolist()):
        if end is not None and opacity >= FAINTEST:
            axes.add_collection(LineCollection([(start, end)], colors=[colour], alpha=opacity))
    axes.plot(*start, "o", color=colour, markeredgecolor="white", markersize=5)
