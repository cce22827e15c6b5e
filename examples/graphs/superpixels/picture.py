"""A collage: its cells, what a superpixel reads, and the three segmentations."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from skimage.segmentation import mark_boundaries

import ndgpa
from examples.graphs.compare import Sample
from examples.graphs.model import GraphNetwork, Recorder
from examples.graphs.superpixels.data import CLASSES, Collage, Segmentation

COLOURS = np.array([[0.90, 0.25, 0.20], [0.20, 0.60, 0.95], [0.95, 0.80, 0.15]])


@torch.no_grad()
def draw(path: Path, task: Segmentation, networks: dict[str, GraphNetwork]) -> None:
    collage, sample = task.test_collages[0], task.tests[0]
    centre = _centres(collage.region)
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    cells = sample.structure.cell_of_site.numpy()[collage.region]
    blocks = sample.structure.block_of_site.numpy()[collage.region]
    lines = mark_boundaries(collage.image, blocks, color=(1, 1, 1), mode="inner")
    _show(axes[0], mark_boundaries(lines, cells, color=(1, 0, 0)), "blocks (white), cells (red)")
    _show(axes[1], 0.6 * collage.image + 0.4, "what three superpixels read (GPA)")
    _key_lines(axes[1], sample, networks["gpa"], centre)
    _show(axes[2], _tinted(collage, sample.y.numpy()), "truth, and what is marked")
    for name, network, ax in zip(networks, networks.values(), axes[3:]):
        predicted = network(sample.x, sample.edge_index, sample.structure)
        title = f"{name}: {task.error(predicted, sample):.1f} % wrong"
        _show(ax, _tinted(collage, predicted.argmax(dim=1).numpy()), title)
    for ax in axes[2:]:
        for k in range(CLASSES):
            marks = centre[(sample.x[:, -CLASSES + k] > 0).numpy()]
            ax.plot(*marks.T, "o", color=COLOURS[k], markeredgecolor="black", markersize=9)
    part = path.with_name(f".part-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(part, dpi=80, format="png")
    part.replace(path)


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)


def _tinted(collage: Collage, label: np.ndarray) -> np.ndarray:
    """The collage in the colours of its classes, its light and dark kept."""
    light = collage.image.mean(axis=2, keepdims=True)
    return (0.25 + 0.75 * light) * COLOURS[label[collage.region]]


def _centres(region: np.ndarray) -> np.ndarray:  # (n, 2): across, down
    flat, size = region.reshape(-1), np.bincount(region.reshape(-1))
    rows, columns = (x.reshape(-1) for x in np.indices(region.shape))
    return np.stack([np.bincount(flat, columns) / size, np.bincount(flat, rows) / size], axis=1)


def _key_lines(axes: Axes, sample: Sample, network: GraphNetwork, centre: np.ndarray) -> None:
    """From three superpixels to those that they read in the last layer; opacity is weight."""
    attention = network.layers[-1].attention
    operator = attention.operator
    assert isinstance(operator, ndgpa.GPA)
    attention.operator = recorder = Recorder(operator)
    network(sample.x, sample.edge_index, sample.structure)
    attention.operator = operator
    for k, site in enumerate((len(sample.y) // 6, len(sample.y) // 2, 5 * len(sample.y) // 6)):
        read, weight = recorder.keys_of(site, sample.structure)
        shade = (weight / weight.max()).numpy()
        colour = colormaps["tab10"](k)[:3]
        ends = [[centre[site], centre[other]] for other in read.tolist()]
        axes.add_collection(LineCollection(ends, colors=[(*colour, a) for a in shade]))
        axes.plot(*centre[site], "o", color=colour, markeredgecolor="white", markersize=8)
