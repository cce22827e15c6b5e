"""Collages of photographs, cut into superpixels; a few of them are marked."""

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from skimage.color import rgb2lab
from skimage.segmentation import slic
from torch import Tensor

import ndgpa
from examples.graphs.compare import Sample

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "hubble_deep_field")
CLASSES = 3  # photographs in a collage
MARKS = 2  # marked superpixels of each
TRAINED_ON = 0.6  # of the width of every photograph; tests see the rest


class Collage:
    """A square of tiles, each from one of three photographs, as a graph of superpixels.

    Args:
        seed: Of the tiles.
        part: "train" for tiles from the left of the photographs, "test" from the right.
        tiles: Tiles along a side.
        tile: Pixels along the side of a tile.
    """

    def __init__(self, seed: int, part: str, tiles: int, tile: int) -> None:
        rng = np.random.default_rng(seed)
        photos = [_photo(name, part) for name in rng.choice(PHOTOS, CLASSES, replace=False)]
        which = rng.permutation(np.arange(tiles**2) % CLASSES).reshape(tiles, tiles)
        self.image = np.block([[[_crop(photos[k], tile, rng)] for k in row] for row in which])
        of_pixel = which.repeat(tile, axis=0).repeat(tile, axis=1)
        wanted = (tiles * tile) ** 2 // 25  # superpixels of 5 by 5
        self.region = slic(self.image, wanted, compactness=8, start_label=0)
        self.region = np.unique(self.region, return_inverse=True)[1].reshape(self.region.shape)
        self.label = torch.from_numpy(_majority(self.region, of_pixel))
        self.features, self.edge_index = _describe(self.image, self.region)
        n = len(self.label)
        self.structure = ndgpa.Graph(self.edge_index, n, downsample=8, cell=8)

    def sample(self, generator: torch.Generator) -> Sample:
        """Mark superpixels of each photograph; photographs are numbered at random."""
        number = torch.randperm(CLASSES, generator=generator)
        y = number[self.label]
        marked = torch.zeros(len(y), CLASSES)
        for k in range(CLASSES):
            sites = (y == k).nonzero()[:, 0]
            marked[sites[torch.randperm(len(sites), generator=generator)[:MARKS]], k] = 4
        return Sample(torch.cat([self.features, marked], 1), y, self.edge_index, self.structure)


class Segmentation:
    """Predict the photograph of every superpixel, from superpixels marked with its number."""

    inputs, outputs = 10 + CLASSES, CLASSES

    def __init__(self, collages: int, tests: int, tiles: int, tile: int) -> None:
        self.collages = [Collage(seed, "train", tiles, tile) for seed in range(collages)]
        self.test_collages = [Collage(10_000 + seed, "test", tiles, tile) for seed in range(tests)]
        generator = torch.Generator().manual_seed(0)
        self.tests = [c.sample(generator) for c in self.test_collages for _ in range(2)]

    def draw(self, generator: torch.Generator) -> Sample:
        collage = self.collages[int(torch.randint(len(self.collages), (), generator=generator))]
        return collage.sample(generator)

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        return F.cross_entropy(predicted, sample.y)

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """Superpixels that are given the wrong photograph."""
        return 100 * (predicted.argmax(dim=1) != sample.y).float().mean()


def _photo(name: str, part: str) -> np.ndarray:
    """The left or the right of a photograph at half its resolution, (h, w, 3) from 0 to 1."""
    image = getattr(skimage.data, name)() / 255.0
    border = int(TRAINED_ON * image.shape[1])
    image = image[:, :border] if part == "train" else image[:, border:]
    h, w = (size // 2 * 2 for size in image.shape[:2])
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean(axis=(1, 3))


def _crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(0, length - size + 1)) for length in photo.shape[:2])
    tile = photo[top : top + size, left : left + size]
    return tile[:, ::-1] if rng.random() < 0.5 else tile


def _majority(region: np.ndarray, of_pixel: np.ndarray) -> np.ndarray:
    """What most pixels of each region are."""
    count = np.zeros((region.max() + 1, CLASSES), dtype=np.int64)
    np.add.at(count, (region, of_pixel), 1)
    return count.argmax(axis=1)


def _describe(image: np.ndarray, region: np.ndarray) -> tuple[Tensor, Tensor]:
    """Means and deviations of colour, of gradients, and place; (n, 10). And the adjacent pairs."""
    lab = rgb2lab(image) / 50
    down, across = (np.abs(np.gradient(lab[..., 0], axis=axis)) for axis in (0, 1))
    rows, columns = np.indices(region.shape) / region.shape[0] - 0.5
    pixels = np.stack([*np.moveaxis(lab, 2, 0), down, across, rows, columns]).reshape(7, -1)
    flat = region.reshape(-1)
    size = np.bincount(flat)
    mean = np.stack([np.bincount(flat, p) / size for p in pixels])
    square = np.stack([np.bincount(flat, p**2) / size for p in pixels[:3]])
    deviation = np.sqrt(np.maximum(square - mean[:3] ** 2, 0))
    pairs = np.concatenate(
        [
            np.stack([region[:, :-1], region[:, 1:]], axis=-1).reshape(-1, 2),
            np.stack([region[:-1], region[1:]], axis=-1).reshape(-1, 2),
        ]
    )
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    features = np.concatenate([mean, 4 * deviation]).T
    return torch.from_numpy(features).float(), torch.from_numpy(pairs.T.copy())
