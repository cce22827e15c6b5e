"""Distance in the features of a network."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Features = Callable[[Tensor], list[Tensor]]  # pictures (b, 3, h, w) -> maps (b, c, l, k)


def perceptual(
    images: Float[Tensor, "b 3 h w"], truths: Float[Tensor, "b 3 h w"], features: Features
) -> Float[Tensor, " b"]:
    """Squared distance of the features, each place brought to norm 1; a sum over the maps.

    Source: Zhang et al. 2018, without its learnt weights for the channels.

    Args:
        images, truths: In the range that `features` wants.
        features: The maps to compare, of any number of layers.
    """
    pairs = zip(features(images), features(truths))
    return torch.stack([_distance(a, b) for a, b in pairs]).sum(dim=0)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean(dim=(1, 2))
