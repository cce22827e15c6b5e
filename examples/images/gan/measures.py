"""How near made pictures come to real ones, as distributions of named features.

Features are those of Inception-v3 where its weights are given. Else there are two kinds, each over
the spread of real ones, so that a set of which nothing is left but the mean is 1 away: "form" is
the mean of the last stage of a network that was trained here to find the key points of drawn heads
in any colours (judge.py), and "colours" are the mean colours of 4x4 squares. Only distances of the
published network's features are called FID.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.frechet import frechet_distance
from examples.common.inception import load_inception
from examples.images.gan import judge
from examples.images.gan.data import Pictured

BATCH = 32
NEIGHBOURS = 3  # of the sets that precision and recall compare
SQUARES = 4  # along each side, whose mean colours are compared

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measures:
    """Measures of a generator, against one sample of real pictures.

    Args:
        features: Of pictures in -1 to 1, by name; precision and recall are of the first.
        real: Those of the real pictures.
    """

    features: dict[str, Features]
    real: dict[str, Float[Tensor, "n d"]]

    @classmethod
    def of(cls, pictured: Pictured, count: int, inception: Path | None = None) -> "Measures":
        """Choose features, and take those of `count` real pictures, or of all if there are fewer.

        Raises:
            ValueError: `inception` is no file of Inception's weights.
        """
        real = some_real(pictured, count)
        features = _of_inception(inception) if inception else _own(real)
        return cls(features, {name: batched(f, real) for name, f in features.items()})

    def __call__(self, made: Float[Tensor, "m 3 h w"]) -> dict[str, float]:
        """Measure made pictures, in -1 to 1."""
        found = {name: batched(f, made.clamp(-1, 1)) for name, f in self.features.items()}
        first = next(iter(found))
        precision, recall = precision_recall(self.real[first], found[first])
        return {
            **{
                f"frechet_{name}": frechet_distance(x, self.real[name]) for name, x in found.items()
            },
            "precision": precision,
            "recall": recall,
        }


def some_real(pictured: Pictured, count: int, skip: int = 0) -> Float[Tensor, "n 3 h w"]:
    """Take real pictures in a fixed random order, in -1 to 1."""
    order = torch.randperm(len(pictured.images), generator=torch.Generator().manual_seed(0))
    return pictured.images[order[skip : skip + count]].float() / 127.5 - 1


def _of_inception(path: Path) -> dict[str, Features]:
    name, network = load_inception(path)
    return {name.removeprefix("frechet_"): lambda x: network((x + 1) / 2)}


def _own(real: Tensor) -> dict[str, Features]:
    network = judge.shipped()
    features = {
        "form": lambda x: network.gist(F.adaptive_avg_pool2d(x, judge.SIZE)),
        "colours": lambda x: F.adaptive_avg_pool2d(x, SQUARES).flatten(1),
    }
    return {name: over_spread(f, real) for name, f in features.items()}


def over_spread(features: Features, real: Float[Tensor, "n 3 h w"]) -> Features:
    """Divide features by the root of their total variance over real pictures."""
    spread = batched(features, real).var(dim=0).sum().sqrt()
    return lambda x: features(x) / spread


@torch.no_grad()
def batched(network: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Apply a network to a few pictures at a time."""
    return torch.cat([network(some) for some in pictures.split(BATCH)])


@torch.no_grad()
def made_by(
    generator: nn.Module, latents: Float[Tensor, "n z"], classes: int
) -> Float[Tensor, "n 3 h w"]:
    """Make a picture of each latent, of the classes in turn; noise is the same each time."""
    labels = torch.arange(len(latents)) % classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = zip(latents.split(BATCH), labels.split(BATCH))
        return torch.cat([generator(*part) for part in parts])


def precision_recall(
    real: Float[Tensor, "n d"], made: Float[Tensor, "m d"], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of made samples near real ones, and of real samples near made ones.

    A sample is near a set if it lies within the distance of some element to that element's own
    k-th neighbour in its set.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing
    Generative Models".
    """
    return _near(made, real, neighbours), _near(real, made, neighbours)


def _near(samples: Float[Tensor, "n d"], others: Float[Tensor, "m d"], neighbours: int) -> float:
    reach = torch.cdist(others, others).kthvalue(neighbours + 1, dim=1).values  # itself is first
    return (torch.cdist(samples, others) <= reach).any(dim=1).float().mean().item()
