"""A surface: its cells, the distances, the errors, and what a vertex reads."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from torch import Tensor

import ndgpa
from examples.graphs.compare import Sample
from examples.graphs.mesh.data import Distances, Surface
from examples.graphs.model import GraphNetwork, Recorder


@torch.no_grad()
def draw(path: Path, task: Distances, networks: dict[str, GraphNetwork]) -> None:
    surface = task.test_surfaces[0]
    sample = surface.sample(0)
    predicted = {
        name: network(sample.x, sample.edge_index, sample.structure)[:, 0]
        for name, network in networks.items()
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = iter(figure.subplots(2, 3, subplot_kw={"projection": "3d"}).flat)
    longest = float(sample.y.max())
    colour_of_cell = np.random.default_rng(0).permutation(sample.structure.num_cells)
    shade = colour_of_cell[sample.structure.cell_of_site] / sample.structure.num_cells
    _paint(next(panels), "cells", surface, colormaps["hsv"](shade))
    distance = colormaps["viridis"](sample.y.numpy() / longest)
    axes = next(panels)
    _paint(axes, "true distance; what one vertex reads (GPA)", surface, distance, opacity=0.35)
    _key_lines(axes, surface, sample, networks["gpa"])
    _paint(next(panels), "GPA's distance", surface, _colours("viridis", predicted["gpa"], longest))
    for name, values in predicted.items():
        error = (values - sample.y).abs()
        title = f"error, {name}: {100 * error.mean() / sample.y.mean():.0f} %"
        _paint(next(panels), title, surface, _colours("magma", error, longest / 3))
    part = path.with_name(f".part-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(part, dpi=90, format="png")
    part.replace(path)


def _colours(name: str, values: Tensor, largest: float) -> np.ndarray:  # (n, 4)
    return colormaps[name]((values / largest).clamp(0, 1).numpy())


def _paint(
    axes: object, title: str, surface: Surface, colours: np.ndarray, opacity: float = 1.0
) -> None:
    """Triangles in the mean colour of their corners, shaded, and the marked vertex in red."""
    corners = surface.position.numpy()[surface.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    light = 0.65 + 0.35 * np.abs(normal @ np.array([0.4, -0.6, 0.7]))
    faces = colours[surface.faces].mean(axis=1)
    faces[:, :3] *= light[:, None]
    faces[:, 3] = opacity
    axes.add_collection3d(Poly3DCollection(corners, facecolors=faces))
    mark = surface.position[surface.marks[0]]
    axes.plot(*mark[:, None], "o", color="red", markersize=7, zorder=10)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.set_box_aspect((1, 1, 1), zoom=1.7)
    axes.set_axis_off()
    axes.set_title(title)


def _key_lines(axes: object, surface: Surface, sample: Sample, network: GraphNetwork) -> None:
    """From the vertex that is farthest to those that it reads in the last layer."""
    attention = network.layers[-1].attention
    operator = attention.operator
    assert isinstance(operator, ndgpa.GPA)
    attention.operator = recorder = Recorder(operator)
    network(sample.x, sample.edge_index, sample.structure)
    attention.operator = operator
    site = int(sample.y.argmax())
    read, weight = recorder.keys_of(site, sample.structure)
    start, ends = surface.position[site], surface.position[read]
    shade = (weight / weight.max()).clamp(min=0.05).numpy()
    lines = np.stack([start.expand_as(ends).numpy(), ends.numpy()], axis=1)
    axes.add_collection3d(
        Line3DCollection(lines, colors=[(0.85, 0.1, 0.1, a) for a in shade], linewidths=0.8)
    )
    axes.plot(*start[:, None], "o", color="black", markersize=6, zorder=10)
