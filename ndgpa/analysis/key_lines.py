"""Pictures of lines from queries to the keys that they read."""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.analysis._rows import check_sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = tuple[Tensor, Tensor, Tensor]  # queries, keys, weights
Place = Callable[[int], tuple[float, ...]]  # of a site on the axes

FAINTEST = 0.02  # fainter lines are not drawn


def draw_key_lines(
    to: "Axes | str | PathLike[str]",
    query_image: Float[Tensor, "c h w"],
    key_image: Float[Tensor, "c_k h_k w_k"],
    queries: Int[Tensor, " s"],
    keys: Int[Tensor, "s y"],
    weights: Float[Tensor, "s y"],
) -> None:
    """Draw two images side by side, and lines from queries in one to their keys in the other.

    The opacity of a line is its weight over the largest weight of the query, which shows whether a
    query copies from one place or gathers from many. Needs the extra `viz`.

    Source: Figure 9 of Jetchev et al. 2021.

    Args:
        to: Axes of matplotlib to draw on, or the path of a picture to write.
        query_image: The image whose pixels are the query sites; 1 or 3 channels from 0 to 1.
        key_image: The image whose pixels are the key sites.
        queries: Sites of the queries, in raster order.
        keys: Sites of the keys of each query, -1 for none, such as from `key_weights`.
        weights: The weights of those keys.

    Raises:
        ValueError, TypeError: The arguments do not fit; nothing has been drawn.
        ImportError: matplotlib is not installed.
    """
    _check_picture("query_image", query_image)
    _check_picture("key_image", key_image)
    sizes = (image.shape[1:].numel() for image in (query_image, key_image))
    _check_lines(queries, keys, weights, *sizes)
    arguments.needs("draw_key_lines", "matplotlib", "viz")
    lines = queries, keys, weights
    draw = partial(_draw, query_image=query_image, key_image=key_image, lines=lines)
    height = max(query_image.shape[1], key_image.shape[1])
    width = query_image.shape[2] + key_image.shape[2]
    if isinstance(to, (str, PathLike)):
        _save(Path(to), (10.0, 10.0 * height / width), draw)
    else:
        draw(to)


def draw_graph_key_lines(
    to: "Axes | str | PathLike[str]",
    position: Float[Tensor, "n 2"],
    edge_index: Int[Tensor, "2 E"],
    queries: Int[Tensor, " s"],
    keys: Int[Tensor, "s y"],
    weights: Float[Tensor, "s y"],
) -> None:
    """Draw a graph in the plane, and lines from some nodes to the nodes that they read.

    Opacity as in `draw_key_lines`. Needs the extra `viz`.

    Args:
        to: Axes of matplotlib to draw on, or the path of a picture to write.
        position: Where each node is drawn: across, up.
        edge_index: The edges, which are drawn in grey.
        queries, keys, weights: As for `draw_key_lines`; a site is a node.

    Raises:
        ValueError, TypeError: The arguments do not fit; nothing has been drawn.
        ImportError: matplotlib is not installed.
    """
    _check_positions(position)
    _check_lines(queries, keys, weights, len(position), len(position))
    arguments.needs("draw_graph_key_lines", "matplotlib", "viz")
    draw = partial(
        _draw_graph,
        position=position.detach().cpu(),
        edge_index=edge_index.cpu(),
        lines=(queries, keys, weights),
    )
    if isinstance(to, (str, PathLike)):
        _save(Path(to), (8.0, 8.0), draw)
    else:
        draw(to)


def _save(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    part = path.with_name(f".part-{path.name}")
    try:
        figure.savefig(part, dpi=150)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _draw(axes: "Axes", query_image: Tensor, key_image: Tensor, lines: Lines) -> None:
    gap = max(2, query_image.shape[2] // 32)
    shift = query_image.shape[2] + gap
    axes.set_axis_off()
    _show(axes, query_image, 0)
    _show(axes, key_image, shift)
    axes.set_xlim(-0.5, shift + key_image.shape[2] - 0.5)
    axes.set_ylim(max(query_image.shape[1], key_image.shape[1]) - 0.5, -0.5)
    start, end = partial(_place, image=query_image), partial(_place, image=key_image, shift=shift)
    _draw_lines(axes, lines, start, end)


def _draw_graph(axes: "Axes", position: Tensor, edge_index: Tensor, lines: Lines) -> None:
    from matplotlib.collections import LineCollection

    axes.set_axis_off()
    axes.set_aspect("equal")
    ends = position[edge_index.T].tolist()
    axes.add_collection(LineCollection(ends, colors="0.85", linewidths=0.6, zorder=0))
    across, up = position.T.tolist()
    axes.plot(across, up, ".", color="0.6", markersize=3, zorder=1)
    place: Place = lambda site: tuple(position[site].tolist())  # noqa: E731
    _draw_lines(axes, lines, place, place)


def _draw_lines(axes: "Axes", lines: Lines, place: Place, key_place: Place) -> None:
    """Draw the lines of each query in a colour of its own, as opaque as they weigh."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    queries, keys, weights = lines
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for i, query in enumerate(queries.tolist()):
        colour = colours[i % len(colours)]
        start = place(query)
        opacity = weights[i] / weights[i].max().clamp(min=torch.finfo(weights.dtype).tiny)
        drawn = (keys[i] >= 0) & (opacity >= FAINTEST)
        ends = [key_place(site) for site in keys[i][drawn].tolist()]
        shades = [(*colour, a) for a in opacity[drawn].tolist()]
        axes.add_collection(LineCollection([(start, end) for end in ends], colors=shades))
        axes.plot(*start, "o", color=colour, markeredgecolor="white", markersize=6)


def _show(axes: "Axes", image: Tensor, left: int) -> None:
    _, height, width = image.shape
    pixels = image.detach().float().clamp(0, 1).cpu().expand(3, -1, -1).permute(1, 2, 0)
    extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
    axes.imshow(pixels.numpy(), extent=extent, interpolation="nearest")


def _place(site: int, image: Tensor, shift: int = 0) -> tuple[int, int]:
    """Return where the centre of a pixel is on the axes: across, down."""
    row, column = divmod(site, image.shape[2])
    return column + shift, row


def _check_picture(name: str, image: Any) -> None:
    if not isinstance(image, Tensor) or not image.dtype.is_floating_point:
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"{name} must be a floating tensor; got {got}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"{name} must have shape (1 or 3, height, width); got {tuple(image.shape)}"
        )


def _check_positions(position: Any) -> None:
    if not isinstance(position, Tensor) or not position.dtype.is_floating_point:
        got = position.dtype if isinstance(position, Tensor) else type(position).__name__
        raise TypeError(f"position must be a floating tensor; got {got}")
    if position.ndim != 2 or position.shape[1] != 2:
        raise ValueError(
            f"position must have shape (nodes, 2), where each is drawn; got {tuple(position.shape)}"
        )


def _check_lines(queries: Any, keys: Tensor, weights: Tensor, sites: int, key_sites: int) -> None:
    check_sites("queries", queries, sites)
    for name, x in (("keys", keys), ("weights", weights)):
        if x.ndim != 2 or x.shape[0] != len(queries):
            raise ValueError(
                f"{name} must have a row for each of {len(queries)} queries; got {tuple(x.shape)}"
            )
    if keys.shape != weights.shape:
        raise ValueError(
            f"keys has shape {tuple(keys.shape)} but weights has {tuple(weights.shape)}"
        )
    if keys.numel():
        check_sites("keys", keys.flatten().clamp(min=0), key_sites)
