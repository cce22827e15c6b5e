"""Regions of photographs, and problems on them: scribbles mark a few regions with their class."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from skimage.color import rgb2lab
from skimage.segmentation import slic
from torch import Tensor

import ndgpa
from examples.graphs.compare import Sample
from examples.images.copy_photo.data import (
    HELD_OUT,
    TRAINING,
    held_out_view,
    load_photo,
    random_views,
)

CLASSES = 5
SCRIBBLES = 2  # of each class
NOISE = 0.25  # standard deviations of the colours in the picture, on each channel
MARK = 5.0  # large, so that attention finds the marks early in training
VALIDATION = ("rocket", "stereo_motorcycle")  # what options were chosen on


class Regions:
    """A photograph as a graph: SLIC regions, joined where they touch.

    The classes are clusters of the regions' true colours (k-means).

    Args:
        photo: (3, h, w), from 0 to 1.
        regions: About how many.
    """

    def __init__(self, photo: Tensor, regions: int) -> None:
        self.photo = photo
        lab = rgb2lab(photo.permute(1, 2, 0).numpy())
        found = slic(lab, regions, compactness=10, convert2lab=False, start_label=0)
        self.region = torch.from_numpy(np.unique(found, return_inverse=True)[1]).view(found.shape)
        row, column = np.indices(found.shape) / max(found.shape)
        self.position = self.mean(np.stack([column, row], axis=2))
        colour = self.mean(lab)
        colour = colour - colour.mean(dim=0)
        self.colour = colour / colour.square().sum(dim=1).mean().sqrt()
        _, cluster = kmeans2(self.colour.numpy(), CLASSES, minit="++", rng=0)
        self.cluster = torch.from_numpy(cluster).long()
        self.edge_index = touching(self.region)
        self.structure = ndgpa.Graph(
            self.edge_index, len(colour), downsample=32, cell=4, position=self.position
        )

    def mean(self, values: np.ndarray) -> Tensor:  # (h, w, c) -> (n, c)
        flat = self.region.flatten()
        sums = [
            torch.bincount(flat, torch.from_numpy(x).flatten()) for x in np.moveaxis(values, 2, 0)
        ]
        return (torch.stack(sums, dim=1) / flat.bincount()[:, None]).float()

    def sample(self, generator: torch.Generator | None = None) -> Sample:
        """Noisy colours of all regions, the class of those under scribbles; wanted: of all.

        The classes are numbered anew each time, so nothing but the scribbles tells the numbers.
        """
        y = torch.randperm(CLASSES, generator=generator)[self.cluster]
        marked = self.scribbles(generator)
        noise = torch.randn(self.colour.shape, generator=generator)
        colour = self.colour + NOISE * noise
        waves = torch.cat([k * torch.pi * colour for k in (0.5, 1.0)], dim=1)
        mark = MARK * marked[:, None]
        x = [colour, waves.sin(), waves.cos(), mark * F.one_hot(y, CLASSES), mark]
        return Sample(torch.cat(x, dim=1), y, self.edge_index, self.structure)

    def scribbles(self, generator: torch.Generator | None = None) -> Tensor:  # (n,) bool
        """Random regions of each class, with those of their class that touch them."""
        marked = torch.zeros(len(self.cluster), dtype=torch.bool)
        for number in range(CLASSES):
            own = (self.cluster == number).nonzero()[:, 0]
            marked[own[torch.randint(len(own), (SCRIBBLES,), generator=generator)]] = True
        one, other = self.edge_index
        alike = self.cluster[one] == self.cluster[other]
        marked[other[marked[one] & alike]] = True
        return marked


def touching(region: Tensor) -> Tensor:  # (h, w) -> (2, E)
    """Pairs of regions that share a border, in both directions."""
    across = torch.stack([region[:, :-1].flatten(), region[:, 1:].flatten()])
    down = torch.stack([region[:-1].flatten(), region[1:].flatten()])
    pairs = torch.cat([across, down], dim=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)


class Scribbles:
    """Predict the class of every region from a few marked ones.

    Args:
        views: Views of each photograph to train on.
        test_views: Views of each photograph to test on; the first is its middle, as it is.
        size: Pixels along a side of a view.
        regions: About how many regions a view has.
        validate: Test on photographs that are neither for training nor for the test.
    """

    inputs, outputs, layers = 3 + 12 + CLASSES + 1, CLASSES, 2

    def __init__(
        self, views: int, test_views: int, size: int, regions: int, validate: bool = False
    ) -> None:
        self.facts = {"views": views, "size": size, "regions": regions}
        generator = torch.Generator().manual_seed(0)
        tested = VALIDATION if validate else HELD_OUT
        photos = [load_photo(name) for name in TRAINING if name not in VALIDATION]
        self.training = [
            Regions(view, regions)
            for photo in photos
            for view in random_views([photo], views, size, generator)
        ]
        self.testing = []
        for photo in map(load_photo, tested):
            others = random_views([photo], test_views - 1, size, generator) if test_views > 1 else []
            for view in [held_out_view(photo, size), *others]:
                self.testing.append(Regions(view, regions))
        self.tests = [view.sample(generator) for view in self.testing for _ in range(2)]

    def draw(self) -> Sample:
        return self.training[int(torch.randint(len(self.training), ()))].sample()

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        return F.cross_entropy(predicted, sample.y)

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """The share of wrong regions among those that are not marked."""
        asked = sample.x[:, -1] == 0
        return 100 * (predicted.argmax(dim=1) != sample.y)[asked].float().mean()
