"""Closed surfaces of random blobs, and distances along them."""

from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array, eye_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor

import ndgpa
from examples.graphs.sample import Sample

FIRST_TO_VALIDATE, FIRST_TO_TEST = 10_000, 20_000  # numbers of surfaces
REACH = 4  # edges from the marked vertex that are marked too


class Surface:
    """A mesh by marching cubes of an analytic volume: balls along a random walk, melted together.

    Args:
        seed: Of the walk.
        resolution: Samples of the volume along an axis; vertices grow with its square.
        marks: From how many vertices the distances are known.
    """

    def __init__(self, seed: int, resolution: int, marks: int) -> None:
        rng = np.random.default_rng(seed)
        position, faces = _largest_piece(*_blobs(rng, resolution))
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        edges = np.unique(np.sort(edges, axis=1), axis=0)
        length = np.linalg.norm(position[edges[:, 0]] - position[edges[:, 1]], axis=1)
        n = len(position)
        along = csr_array((length, edges.T), shape=(n, n))
        self.faces = faces
        self.position = torch.from_numpy(position).float()
        self.marks = torch.from_numpy(rng.choice(n, marks, replace=False))
        self.distance = torch.from_numpy(  # (marks, n), shortest paths along edges
            csgraph.dijkstra(along, directed=False, indices=self.marks.numpy())
        ).float()
        touch = along + along.T + eye_array(n)
        near = touch[self.marks.numpy()]
        for _ in range(REACH - 1):
            near = near @ touch
        self.near = torch.from_numpy(near.toarray() > 0).float()  # (marks, n)
        self.edge_index = torch.from_numpy(np.concatenate([edges, edges[:, ::-1]]).T.copy())
        self.structure = ndgpa.Graph(self.edge_index, n, block=8, cell=4)

    def sample(self, mark_number: int) -> Sample:
        """Tell where each vertex is and which is marked, with those within four edges of it."""
        waves = torch.cat([k * torch.pi * self.position for k in (0.5, 1.0, 2.0)], dim=1)
        place = torch.cat([self.position, waves.sin(), waves.cos()], dim=1)
        mark = self.near[mark_number, :, None]
        x = torch.cat([place, mark * place, mark], dim=1)
        return Sample(x, self.distance[mark_number], self.edge_index, self.structure)


class Distances:
    """Predict the distance of every vertex from the marked one, along the surface.

    Args:
        surfaces: To train on.
        tests: Surfaces to test on, with four marks each.
        resolution: Samples of the volume along an axis.
        validate: Test on the surfaces that options were chosen on.
    """

    inputs, outputs, layers = 43, 1, 3

    def __init__(self, surfaces: int, tests: int, resolution: int, validate: bool = False) -> None:
        self.facts = {"surfaces": surfaces, "resolution": resolution}
        first = FIRST_TO_VALIDATE if validate else FIRST_TO_TEST
        self.test_surfaces = [Surface(first + seed, resolution, marks=4) for seed in range(tests)]
        self.tests = [s.sample(mark) for s in self.test_surfaces for mark in range(4)]

    @cached_property
    def surfaces(self) -> list[Surface]:  # made when they are first drawn from
        resolution = self.facts["resolution"]
        return [Surface(seed, resolution, marks=16) for seed in range(self.facts["surfaces"])]

    def draw(self) -> Sample:
        surface = self.surfaces[int(torch.randint(len(self.surfaces), ()))]
        return surface.sample(int(torch.randint(16, ())))

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        return (predicted[:, 0] - sample.y).abs().mean()

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """Divide the mean error by the mean distance, in percent."""
        return 100 * self.loss(predicted, sample) / sample.y.mean()


def _blobs(rng: np.random.Generator, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (n, 3) in a box of about [-1, 1] and faces (m, 3)."""
    walk = rng.normal(size=(7, 3)).cumsum(axis=0)
    walk = (walk - (walk.max(0) + walk.min(0)) / 2) / (walk.max(0) - walk.min(0)).max() * 1.3
    between = np.linspace(0, 6, 25)
    centres = np.stack([np.interp(between, range(7), axis) for axis in walk.T], axis=1)
    along = np.linspace(-1.1, 1.1, resolution)
    grid = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1)
    volume = sum(np.exp(-((grid - c) ** 2).sum(-1) / 0.03) for c in centres)
    position, faces, _, _ = marching_cubes(volume, 0.6)
    return position * (2.2 / (resolution - 1)) - 1.1, faces


def _largest_piece(position: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(position)
    ones = np.ones(len(faces))
    touch = csr_array((ones, (faces[:, 0], faces[:, 1])), shape=(n, n))
    touch = touch + csr_array((ones, (faces[:, 1], faces[:, 2])), shape=(n, n))
    _, piece = connected_components(touch, directed=False)
    keep = piece == np.bincount(piece).argmax()
    number = keep.cumsum() - 1
    return position[keep], number[faces[keep[faces[:, 0]]]]
