"""How far apart two sets of pictures lie as distributions of features."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.inception import load_inception

WIDTHS = (12, 12, 16)
BATCH = 8


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance of pictures in 0 to 1.

    Attributes:
        name: What to call it in a report.
        features: The network whose features are compared.
        least: Pictures below which it is not worth computing.
    """

    name: str
    features: nn.Module
    least: int

    def __call__(self, images: Float[Tensor, "n 3 h w"], truths: Float[Tensor, "m 3 h w"]) -> float:
        seen = [torch.cat([self.features(x) for x in y.split(BATCH)]) for y in (images, truths)]
        return frechet_distance(*seen)


def frechet_of(inception: Path | None) -> Frechet:
    """Choose the features: of Inception-v3 if its weights are given, else of a random network."""
    if inception is None:
        return Frechet("frechet_random_conv", RandomFeatures(), sum(WIDTHS) + 1)
    return Frechet(*load_inception(inception), least=2)


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances of two samples.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), computed from the eigenvalues of the
    symmetric S_a^(1/2) S_b S_a^(1/2), in float64: it is never complex.

    Source: Dowson and Landau 1982; Heusel et al. 2017 with the features of Inception call it FID.

    Warns:
        RuntimeWarning: A sample has no more elements than features: its covariance is singular,
            and the distance depends on how many elements there are.
    """
    smaller, width = min(len(a), len(b)), a.shape[1]
    if smaller <= width:
        warnings.warn(
            f"a Frechet distance of {width} features needs more samples than that to mean "
            f"something, and got {smaller}; compare only with others from as many",
            RuntimeWarning,
            stacklevel=2,
        )
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.cov(x.T).reshape(width, width) for x in (a, b))
    root = square_root(cov_a)
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * overlap)


def square_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Of a symmetric matrix without negative eigenvalues; those of rounding count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


class RandomFeatures(nn.Module):
    """Means over the picture of a small convolutional network with random weights.

    For use where no trained network is at hand; named random_conv, never FID. It tells blurred and
    sharp, colours and patterns apart; it does not know people.

    Args:
        seed: Draws the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, 5, stride=2) for c, d in zip((3, *WIDTHS), WIDTHS)
        )
        generator = torch.Generator().manual_seed(seed)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, generator=generator)
            nn.init.zeros_(conv.bias)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 40"]:
        """Features of pictures in 0 to 1, of at least 32 pixels a side."""
        x, means = 2 * images - 1, []
        for conv in self.convs:
            x = conv(x).relu()
            means.append(x.mean(dim=(2, 3)))
        return torch.cat(means, dim=1)
