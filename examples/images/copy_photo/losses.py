"""What training minimises.

Shapes: b batch, h w a full-resolution picture, l k the small ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from examples.images.copy_photo.matching import Match, positions


def match_loss(matches: list[Match], theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, ""]:
    """Measure how far the positions found lie from the true ones, in sites of the small picture.

    The truth is known for free, as the task was made by drawing theta. The fitted map counts
    everywhere, the positions before the fit where there is something to find.
    """
    shape = tuple(matches[0].position.shape[2:])
    truth, sites = positions(theta, shape), shape[0] / 2
    inside = (truth.abs().amax(dim=1) < 1).float()
    loss = torch.zeros(())
    for match in matches:
        fit = (positions(match.theta, shape) - truth).abs().mean()
        position = ((match.position - truth).abs().sum(dim=1) * inside).sum() / inside.sum()
        loss = loss + sites * (2 * fit + 0.3 * position)
    return loss


def copy_loss(
    image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Add the absolute errors of the picture and of its edges."""
    edges = [(image.diff(dim=dim) - target.diff(dim=dim)).abs().mean() for dim in (2, 3)]
    return (image - target).abs().mean() + edges[0] + edges[1]
