"""What training minimises; errors are absolute, means over the holes.

Shapes: t frames, h w pixels, e heads, m sites in holes.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from examples.video.model import GUESS, Filling


def losses(
    filling: Filling, truth: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"]
) -> dict[str, Float[Tensor, ""]]:
    """Compute each term by name; their sum is minimised."""
    return {
        "pixels": picture_loss(filling.frames, truth, known),
        "copies": 0.5 * copy_loss(filling, truth, known),
        "guess": 0.3 * guess_loss(filling.guess, truth, known),
    }


def picture_loss(
    frames: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    known: Bool[Tensor, "t 1 h w"],
) -> Float[Tensor, ""]:
    """Compare pixels and their differences down, across and in time; 0 where all is known."""
    error, count = frames - truth, (~known).sum().clamp(min=1)
    steps = sum(error.diff(dim=dim).abs().mean(dim=1).sum() for dim in (0, 2, 3))
    return (error.abs().mean(dim=1).sum() + 0.5 * steps) / count


def copy_loss(
    filling: Filling, truth: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"]
) -> Float[Tensor, ""]:
    """Compare the colours that the better head brought, where it found any.

    Without it nothing tells the addresses what to look for; were it the mean of the heads, they
    would become alike.
    """
    wanted = rearrange(truth, "t c h w -> (t h w) c")[~known.flatten()]
    error = (filling.copied - wanted).abs().mean(dim=2)
    error = (error * filling.found).amin(dim=0)
    return error.sum() / filling.found[0].sum().clamp(min=1)


def guess_loss(
    guess: Float[Tensor, "t 3 g i"],
    truth: Float[Tensor, "t 3 h w"],
    known: Bool[Tensor, "t 1 h w"],
) -> Float[Tensor, ""]:
    weight = F.avg_pool2d((~known).float(), GUESS, ceil_mode=True)
    error = (guess - F.avg_pool2d(truth, GUESS, ceil_mode=True)).abs().mean(dim=1, keepdim=True)
    return (error * weight).sum() / weight.sum().clamp(min=1)
