"""Encoders and the blocks of decoders; both UNets are made of them."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.pose_morphing.model.config import ModelConfig
from examples.images.pose_morphing.model.layers import (
    Conv,
    ModulatedConv,
    Noise,
    activate,
    halve,
    merge,
)


class Encoder(nn.Module):
    """Features of every level, the finest first: a stem, then one residual block a level."""

    def __init__(self, channels_in: int, config: ModelConfig) -> None:
        super().__init__()
        widths = config.channels
        self.stem = Conv(channels_in, widths[0], lr=config.weight_lr)
        self.down = nn.ModuleList(DownBlock(i, o, config) for i, o in pairwise(widths))

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        levels = [activate(self.stem(x))]
        for block in self.down:
            levels.append(block(levels[-1]))
        return levels


class DownBlock(nn.Module):
    """Half the size, then a residual convolution."""

    def __init__(self, channels_in: int, channels_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.smooth = config.smooth
        stride = 1 if config.smooth else 2
        self.reduce = Conv(channels_in, channels_out, stride=stride, lr=config.weight_lr)
        self.refine = Conv(channels_out, channels_out, lr=config.weight_lr)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h/2 w/2"]:
        x = activate(self.reduce(halve(x, smooth=True) if self.smooth else x))
        return merge(x, activate(self.refine(x)))


class UpBlock(nn.Module):
    """One decoder level: twice the size, the encoder's features beside, a convolution.

    Args:
        coarser: Channels of the level below; 0 for the coarsest level, which has none.
        width: Channels of this level, in and out.
        style: Features of the style.
        config: For the kind of convolution.
    """

    def __init__(self, coarser: int, width: int, style: int, config: ModelConfig) -> None:
        super().__init__()
        channels_in = coarser + width
        lr = config.weight_lr
        self.conv: Conv | ModulatedConv
        if config.style:
            self.conv = ModulatedConv(channels_in, width, style, lr=lr)
        else:
            self.conv = Conv(channels_in, width, lr=lr)
        self.noise = Noise() if config.noise else None

    def forward(
        self,
        coarser: Float[Tensor, "b i h/2 w/2"] | None,
        skip: Float[Tensor, "b o h w"],
        style: Float[Tensor, "b s"],
    ) -> Float[Tensor, "b o h w"]:
        x = skip
        if coarser is not None:
            x = torch.cat([F.interpolate(coarser, scale_factor=2.0), skip], dim=1)
        x = self.conv(x, style) if isinstance(self.conv, ModulatedConv) else self.conv(x)
        if self.noise is not None:
            x = self.noise(x)
        return activate(x)


def up_blocks(config: ModelConfig) -> nn.ModuleList:
    """The decoder's blocks, the finest first."""
    widths = config.channels
    coarser = (*widths[1:], 0)
    style = widths[-1]
    return nn.ModuleList(UpBlock(c, w, style, config) for c, w in zip(coarser, widths, strict=True))


def style_of(levels: list[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c"]:
    """The mean over the last encoder layer, as in the paper."""
    return levels[-1].mean((2, 3))
