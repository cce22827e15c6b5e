"""A photograph: the clicks, cells, what a region reads, and what each network says."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.figures import save_figure
from examples.graphs.model import GraphNetwork, first_gpa, reads_of
from examples.graphs.sample import Sample
from examples.graphs.superpixels.data import Clicks, Regions


@torch.no_grad()
def draw(path: Path, task: Clicks, networks: dict[str, GraphNetwork]) -> None:
    """Draw the first test."""
    view, sample = task.testing[0], task.tests[0]
    figure = Figure(figsize=(13, 7), layout="constrained")
    gpa = networks[str(first_gpa(networks))]
    panels = iter(figure.subplots(2, -(-(5 + len(networks)) // 2), squeeze=False).flat)
    marked = sample.x[:, -1] > 0
    photo = view.photo.permute(1, 2, 0).numpy()
    _show(next(panels), "photograph", photo)
    _show(next(panels), "what a network sees: noise, clicks", _seen(view, sample, marked))
    _show(next(panels), "wanted", _labels(view, sample.y > 0))
    shade = np.random.default_rng(0).permutation(sample.structure.num_cells)
    shade = shade[sample.structure.cell_of_site] / sample.structure.num_cells
    _show(next(panels), "cells", 0.4 * photo + 0.6 * _painted(view, colormaps["hsv"](shade)))
    axes = next(panels)
    _show(axes, "what one region reads (GPA)", 0.5 + 0.5 * _seen(view, sample, marked))
    _key_lines(axes, view, sample, gpa, marked)
    for name, network in networks.items():
        predicted = network(sample.x, sample.edge_index, sample.structure)
        title = f"{name}: {task.error(predicted, sample):.0f} % wrong"
        _show(next(panels), title, _labels(view, predicted[:, 0] > 0))
    for axes in panels:
        axes.set_axis_off()
    save_figure(figure, path, dpi=80)


def _show(axes: Axes, title: str, picture: np.ndarray) -> None:
    axes.imshow(picture.clip(0, 1))
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _painted(view: Regions, colours: np.ndarray) -> np.ndarray:  # (n, 3 or 4) -> (h, w, 3)
    return colours[view.region.numpy()][..., :3]


def _labels(view: Regions, selected: Tensor) -> np.ndarray:
    """Show the photograph where it is selected, dark blue elsewhere."""
    photo = view.photo.permute(1, 2, 0).numpy()
    return np.where(selected.numpy()[view.region.numpy()][..., None], photo, [0.0, 0.0, 0.4])


def _seen(view: Regions, sample: Sample, marked: Tensor) -> np.ndarray:
    """Show the noisy lightness of each region, and in red where it was clicked."""
    light = (0.5 + 0.25 * sample.x[:, :1]).expand(-1, 3).numpy()
    return _painted(view, np.where(marked[:, None], [1.0, 0.0, 0.0], light))


def _key_lines(
    axes: Axes, view: Regions, sample: Sample, network: GraphNetwork, marked: Tensor
) -> None:
    """Draw lines from the region farthest from every click to those that it reads at first."""
    place = view.position * max(view.region.shape)
    site = int(torch.cdist(place, place[marked]).amin(dim=1).argmax())
    read, weight = reads_of(network, sample, site, layer=0)
    shade = (weight / weight.max()).clamp(min=0.02).numpy()
    ends = place[read]
    lines = np.stack([place[site].expand_as(ends).numpy(), ends.numpy()], axis=1)
    axes.add_collection(
        LineCollection(lines, colors=[(0.85, 0.1, 0.1, a) for a in shade], linewidths=0.8)
    )
    axes.plot(*place[site, :, None], "o", color="black", markersize=6)
