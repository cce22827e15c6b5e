"""Regions of photographs, and problems on them: what is lighter than a region that was clicked?"""

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2lab
from skimage.segmentation import slic
from torch import Tensor

import ndgpa
from examples.graphs.sample import Sample
from examples.images.copy_photo.data import (
    HELD_OUT,
    TRAINING,
    held_out_view,
    load_photo,
    random_views,
)

# In standard deviations of the lightness in the picture:
NOISE = 0.3  # of what is seen, on each channel
ALIKE = 0.15  # how far the lightness under the clicks is from the first one's
CLICKS = 3
MARK = 5.0  # large, so that attention finds the marks early in training
VALIDATION = ("rocket", "stereo_motorcycle")  # what options were chosen on
PHOTOS = tuple(name for name in TRAINING if name not in VALIDATION)  # to train on


class Regions:
    """A photograph as a graph: SLIC regions, joined where they touch.

    Args:
        photo: (3, h, w), from 0 to 1.
        regions: About how many.
    """

    def __init__(self, photo: Tensor, regions: int) -> None:
        self.photo = photo
        pixels = photo.permute(1, 2, 0).numpy()
        found = slic(pixels, regions, compactness=10, start_label=0)
        self.region = torch.from_numpy(np.unique(found, return_inverse=True)[1]).view(found.shape)
        row, column = np.indices(found.shape) / max(found.shape)
        self.position = self.mean(np.stack([column, row], axis=2))
        colour = self.mean(rgb2lab(pixels))
        self.colour = (colour - colour.mean(dim=0)) / colour[:, 0].std()
        self.edge_index = touching(self.region)
        self.structure = ndgpa.Graph(
            self.edge_index, len(colour), block=16, cell=4, position=self.position
        )

    def mean(self, values: np.ndarray) -> Tensor:  # (h, w, c) -> (n, c)
        flat = self.region.flatten()
        sums = [
            torch.bincount(flat, torch.from_numpy(x).flatten()) for x in np.moveaxis(values, 2, 0)
        ]
        return (torch.stack(sums, dim=1) / flat.bincount()[:, None]).float()

    def sample(self, generator: torch.Generator | None = None) -> Sample:
        """Make a luminosity mask of a photo editor: regions were clicked; which are lighter?

        Seen are noisy colours and the marks. Wanted is 1 where the true lightness is above that of
        the first region clicked, wherever in the picture, and 0 elsewhere.
        """
        first = int(torch.randint(len(self.colour), (), generator=generator))
        lighter = self.colour[:, 0] - self.colour[first, 0]
        marked = self.clicked(first, lighter.abs() < ALIKE, generator)[:, None]
        colour = self.colour + NOISE * torch.randn(self.colour.shape, generator=generator)
        x = torch.cat([colour, MARK * marked * colour, MARK * marked], dim=1)
        return Sample(x, (lighter > 0).float(), self.edge_index, self.structure)

    def clicked(
        self, first: int, alike: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:  # (n,) bool
        """Mark some regions that are alike, and like ones within two regions of them: the brush."""
        own = alike.nonzero()[:, 0]
        marked = torch.zeros_like(alike)
        marked[first] = True
        marked[own[torch.randint(len(own), (CLICKS - 1,), generator=generator)]] = True
        one, other = self.edge_index
        for _ in range(2):
            marked[other[marked[one] & alike[other]]] = True
        return marked


def touching(region: Tensor) -> Tensor:  # (h, w) -> (2, E)
    """List the pairs of regions that share a border, in both directions."""
    across = torch.stack([region[:, :-1].flatten(), region[:, 1:].flatten()])
    down = torch.stack([region[:-1].flatten(), region[1:].flatten()])
    pairs = torch.cat([across, down], dim=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)


class Clicks:
    """Select the regions that are lighter than the clicked ones.

    Args:
        views: Views of each photograph to train on.
        test_views: Views of each photograph to test on; the first is its middle, as it is.
        size: Pixels along a side of a view.
        regions: About how many regions a view has.
        validate: Test on photographs that are neither for training nor for the test.
    """

    inputs, outputs, layers = 7, 1, 2

    def __init__(
        self, views: int, test_views: int, size: int, regions: int, validate: bool = False
    ) -> None:
        self.facts = {"views": views, "size": size, "regions": regions}
        generator = torch.Generator().manual_seed(1)
        self.testing = []
        for photo in map(load_photo, VALIDATION if validate else HELD_OUT):
            others = random_views([photo], test_views, size, generator)[1:]
            for view in (held_out_view(photo, size), *others):
                self.testing.append(Regions(view, regions))
        self.tests = [view.sample(generator) for view in self.testing for _ in range(2)]

    @cached_property
    def training(self) -> list[Regions]:  # made when they are first drawn from
        views, size, regions = (self.facts[name] for name in ("views", "size", "regions"))
        generator = torch.Generator().manual_seed(0)
        return [
            Regions(view, regions)
            for photo in map(load_photo, PHOTOS)
            for view in random_views([photo], views, size, generator)
        ]

    def draw(self) -> Sample:
        return self.training[int(torch.randint(len(self.training), ()))].sample()

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        return F.binary_cross_entropy_with_logits(predicted[:, 0], sample.y)

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """Return the percentage of regions that are wrongly selected or left out."""
        return 100 * ((predicted[:, 0] > 0) != (sample.y > 0)).float().mean()
