"""A surface: its cells, the distances, the errors, and what a vertex reads."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from torch import Tensor

from examples.common.figures import save_figure
from examples.graphs.mesh.data import Distances, Surface
from examples.graphs.model import GraphNetwork, first_gpa, reads_of
from examples.graphs.sample import Sample


@torch.no_grad()
def draw(path: Path, task: Distances, networks: dict[str, GraphNetwork]) -> None:
    gpa = str(first_gpa(networks))
    surface, mark = _typical(task, networks[gpa])
    sample = surface.sample(mark)
    predicted = {
        name: network(sample.x, sample.edge_index, sample.structure)[:, 0]
        for name, network in networks.items()
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = iter(
        figure.subplots(2, -(-(3 + len(networks)) // 2), subplot_kw={"projection": "3d"}).flat
    )
    longest = float(sample.y.max())
    colour_of_cell = np.random.default_rng(0).permutation(sample.structure.num_cells)
    shade = colour_of_cell[sample.structure.cell_of_site] / sample.structure.num_cells
    _paint(next(panels), "cells", surface, mark, colormaps["hsv"](shade))
    distance = colormaps["viridis"](sample.y.numpy() / longest)
    axes = next(panels)
    _paint(
        axes, "true distance; what one vertex reads (GPA)", surface, mark, distance, opacity=0.35
    )
    _key_lines(axes, surface, sample, networks[gpa])
    _paint(
        next(panels),
        "GPA's distance",
        surface,
        mark,
        _colours("viridis", predicted[gpa], longest),
    )
    for name, values in predicted.items():
        error = (values - sample.y).abs()
        title = f"error, {name}: {100 * error.mean() / sample.y.mean():.0f} %"
        _paint(next(panels), title, surface, mark, _colours("magma", error, longest / 3))
    for axes in panels:
        axes.set_axis_off()
    save_figure(figure, path, dpi=90)


def _typical(task: Distances, network: GraphNetwork) -> tuple[Surface, int]:
    """Choose the test of median error, so that the picture is neither the best nor the worst."""
    errors = [task.error(network(s.x, s.edge_index, s.structure), s).item() for s in task.tests]
    middle = sorted(range(len(errors)), key=errors.__getitem__)[len(errors) // 2]
    return task.test_surfaces[middle // 4], middle % 4


def _colours(name: str, values: Tensor, largest: float) -> np.ndarray:  # (n, 4)
    return colormaps[name]((values / largest).clamp(0, 1).numpy())


def _paint(
    axes: object, title: str, surface: Surface, mark: int, colours: np.ndarray, opacity: float = 1.0
) -> None:
    """Paint shaded triangles in the mean colour of their corners, and the marked vertex in red."""
    corners = surface.position.numpy()[surface.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    light = 0.65 + 0.35 * np.abs(normal @ np.array([0.4, -0.6, 0.7]))
    faces = colours[surface.faces].mean(axis=1)
    faces[:, :3] *= light[:, None].clip(0, 1)
    faces[:, 3] = opacity
    axes.add_collection3d(Poly3DCollection(corners, facecolors=faces))
    place = surface.position[surface.marks[mark]]
    axes.plot(*place[:, None], "o", color="red", markersize=7, zorder=10)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.set_box_aspect((1, 1, 1), zoom=1.25)
    axes.computed_zorder = False  # the mark is seen through the surface
    axes.set_axis_off()
    axes.set_title(title)


def _key_lines(axes: object, surface: Surface, sample: Sample, network: GraphNetwork) -> None:
    """Draw lines from the farthest vertex to those that it reads in the last layer."""
    site = int(sample.y.argmax())
    read, weight = reads_of(network, sample, site)
    start, ends = surface.position[site], surface.position[read]
    shade = (weight / weight.max()).clamp(min=0.05).numpy()
    lines = np.stack([start.expand_as(ends).numpy(), ends.numpy()], axis=1)
    axes.add_collection3d(
        Line3DCollection(lines, colors=[(0.85, 0.1, 0.1, a) for a in shade], linewidths=0.8)
    )
    axes.plot(*start[:, None], "o", color="black", markersize=6, zorder=10)
