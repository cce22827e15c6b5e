"""The copy loss: what each attention copied, as pixels, against the target. It needs no labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from examples.images.pose_morphing.model import Level


def copy_loss(levels: list[Level], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """The sum over levels of the mean absolute difference from the target at that size.

    Without it attention learns no correspondence within minutes, even where it is full: colours
    that a network paints by itself lower the other losses faster.
    """
    terms = [
        (level.copied - F.adaptive_avg_pool2d(truth, level.size)).abs().mean() for level in levels
    ]
    return torch.stack(terms).sum() if terms else truth.new_zeros(())
