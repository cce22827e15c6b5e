"""How far a picture lies from its truth, pixel by pixel: at several scales, and along edges."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCALES = ((1, 1.0), (2, 0.5), (4, 0.5))  # pixels along the side of a mean, and its weight


def multi_scale_l1(
    image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Mean absolute differences of the picture and of its means over 2x2 and 4x4 pixels."""
    difference = image - truth
    terms = [weight * F.avg_pool2d(difference, side).abs().mean() for side, weight in SCALES]
    return torch.stack(terms).sum()


def edge_l1(image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute differences of the strengths of vertical and of horizontal edges."""
    terms = [(image.diff(dim=d).abs() - truth.diff(dim=d).abs()).abs().mean() for d in (2, 3)]
    return torch.stack(terms).sum()
