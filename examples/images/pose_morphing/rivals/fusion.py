"""What all rivals share: one convolution joins the carried features to those of the target."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import Conv, activate, merge
from examples.images.pose_morphing.config import ModelConfig


class Fusion(nn.Module):
    """The fusion of the copy attention, beside any way to carry the source over."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv = Conv(2 * width, width, config.fusion_kernel, lr=config.weight_lr)

    def forward(
        self, target: Float[Tensor, "b c h w"], carried: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        return merge(target, activate(self.conv(torch.cat([target, carried], dim=1))))
