"""Bidirectional feature transformation: each side scales and shifts the other."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import Conv
from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.levels import Carried, Given
from examples.images.pose_morphing.rivals.rival import Rival


class Modulation(Rival):
    """Normalise each side's features, then scale and shift every site as the other side says.

    Source: AlBahar and Huang 2019 ("Guided image-to-image translation with bi-directional feature
    transformation"), equations 1 to 4; theirs stands in the encoders.

    Arguments as of `Skip`.
    """

    def __init__(self, size: tuple[int, int], width: int, config: ModelConfig) -> None:
        super().__init__()
        self.by_source, self.by_target = (
            Conv(width, 2 * width, config.fusion_kernel, lr=config.weight_lr) for _ in range(2)
        )
        for conv in (self.by_source, self.by_target):
            nn.init.zeros_(conv.weight)

    def forward(self, given: Given) -> Carried:
        target, source = given.target, given.source
        return Carried(
            transformed(target, self.by_source(source)), transformed(source, self.by_target(target))
        )


def transformed(
    x: Float[Tensor, "b c h w"], said: Float[Tensor, "b 2*c h w"]
) -> Float[Tensor, "b c h w"]:
    """Normalise over the channels of a site, scale by 1 + the first half, add the second."""
    scale, shift = said.chunk(2, dim=1)
    normal = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
    return normal * (1 + scale) + shift
