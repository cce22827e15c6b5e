"""Augmentation whose strength follows how much the discriminator overfits.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data". Pictures
are moved by bilinear interpolation, without the paper's smoothing filters.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.processes import average

Matrices = Float[Tensor, "b n n"]


@dataclass(frozen=True)
class Adaptation:
    """How the strength of the augmentation follows r_t, the mean sign of the scores of real ones.

    Args:
        target: The r_t above which the discriminator counts as overfitting.
        every: Steps between changes.
        images: Real pictures in which the strength goes from 0 to 1.
    """

    target: float = 0.6
    every: int = 4
    images: int = 500_000


class Adaptive(nn.Module):
    """Augment pictures with a probability that is adapted, and checkpointed with the networks."""

    strength: Tensor
    signs: Tensor
    steps: Tensor

    def __init__(self, adaptation: Adaptation) -> None:
        super().__init__()
        self.adaptation = adaptation
        for name in ("strength", "signs", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Apply each transformation to each picture with the probability `strength`."""
        return coloured(moved(picture, self.strength), self.strength)

    @torch.no_grad()
    def observe(self, real: Float[Tensor, " b"], batch: int) -> None:
        """Note the scores of real pictures, and move the strength when it is time.

        Args:
            real: This process's scores.
            batch: Pictures of all processes.
        """
        self.signs += real.sign().mean()
        self.steps += 1
        if self.steps == self.adaptation.every:
            overfit = average(self.signs) / self.steps - self.adaptation.target
            moved_by = overfit.sign() * batch * self.steps / self.adaptation.images
            self.strength.add_(moved_by).clamp_(0, 1)
            self.signs.zero_()
            self.steps.zero_()


def moved(x: Float[Tensor, "b 3 h w"], p: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Mirror, turn, scale and shift pictures; what comes in is a reflection."""
    b, _, height, width = x.shape
    mirror = 1 - 2.0 * (uniform(x) < 0.5)
    quarter = (uniform(x) * 4).floor() * math.pi / 2
    whole = [((uniform(x) - 0.5) / 4 * n).round() * 2 / n for n in (width, height)]  # pixels
    size, ratio = (2 ** (0.2 * normal(x)) for _ in range(2))
    angles = [(2 * uniform(x) - 1) * math.pi for _ in range(2)]
    drift = [normal(x) / 4 for _ in range(2)]  # an eighth of the size
    turns = 1 - (1 - p).sqrt()  # of two, one happens with probability p
    where = sometimes(scaling(mirror, torch.ones_like(mirror)), p)
    for change, probability in (
        (turning(quarter), p),
        (shifting(*whole), p),
        (scaling(size, size), p),
        (turning(angles[0]), turns),
        (scaling(ratio, 1 / ratio), p),
        (turning(angles[1]), turns),
        (shifting(*drift), p),
    ):
        where = where @ sometimes(change, probability)
    grid = F.affine_grid(where[:, :2], [b, 3, height, width], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def coloured(x: Float[Tensor, "b 3 h w"], p: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Change brightness, contrast, light and dark, hue and saturation."""
    grey = torch.full((3, 3), 1 / 3, dtype=x.dtype, device=x.device)
    same = torch.eye(3, dtype=x.dtype, device=x.device)
    contrast = 2 ** (0.5 * normal(x))[:, None, None] * same
    inverted = same - 2 * (uniform(x) < 0.5)[:, None, None] * grey
    hue = around_grey((2 * uniform(x) - 1) * math.pi)
    saturation = grey + 2 ** normal(x)[:, None, None] * (same - grey)
    change = sometimes(contrast, p)
    for following in (inverted, hue, saturation):
        change = sometimes(following, p) @ change
    brightness = torch.where(uniform(x) < p, 0.2 * normal(x), 0.0)[:, None, None, None]
    return torch.einsum("b d c, b c h w -> b d h w", change, x + brightness)


def uniform(x: Tensor) -> Float[Tensor, " b"]:
    return torch.rand(len(x), dtype=x.dtype, device=x.device)


def normal(x: Tensor) -> Float[Tensor, " b"]:
    return torch.randn(len(x), dtype=x.dtype, device=x.device)


def sometimes(change: Matrices, p: Tensor) -> Matrices:
    """Keep each matrix with probability p, and put the identity in place of the others."""
    identity = torch.eye(change.shape[-1], dtype=change.dtype, device=change.device)
    return torch.where(uniform(change)[:, None, None] < p, change, identity)


def scaling(x: Float[Tensor, " b"], y: Float[Tensor, " b"]) -> Matrices:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def turning(angle: Float[Tensor, " b"]) -> Matrices:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def shifting(x: Float[Tensor, " b"], y: Float[Tensor, " b"]) -> Matrices:
    """Shift by parts of half of the size."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, x, zero, one, y, zero, zero, one], dim=1).unflatten(1, (3, 3))


def around_grey(angle: Float[Tensor, " b"]) -> Matrices:
    """Turn colours about the axis of greys."""
    axis = 3**-0.5
    cross = axis * torch.tensor(
        [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]],
        dtype=angle.dtype,
        device=angle.device,
    )
    turn, cos = angle[:, None, None], angle.cos()[:, None, None]
    identity = torch.eye(3, dtype=angle.dtype, device=angle.device)
    return cos * identity + turn.sin() * cross + (1 - cos) / 3
