"""The discriminator: does this picture, with this pose, look real?"""

import math
from itertools import pairwise

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.pose_morphing.model.config import ModelConfig
from examples.images.pose_morphing.model.layers import Conv, Linear, activate, halve, merge


class Discriminator(nn.Module):
    """The residual discriminator of StyleGAN2 over (picture, heat maps), as wide as the generator.

    Source: Karras et al. 2020, and table 3 of Jetchev et al. 2021.
    """

    def __init__(self, config: ModelConfig, channels_in: int = 21) -> None:
        super().__init__()
        widths = config.channels
        self.stem = Conv(channels_in, widths[0], 1)
        self.blocks = nn.ModuleList(DiscriminatorBlock(i, o) for i, o in pairwise(widths))
        self.last = Conv(widths[-1] + 1, widths[-1])
        area = math.prod(config.sizes[-1])
        self.dense = Linear(widths[-1] * area, widths[-1])
        self.out = Linear(widths[-1], 1)

    def forward(
        self, image: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 18 h w"]
    ) -> Float[Tensor, " b"]:
        """One logit for each pair; higher is more real."""
        x = activate(self.stem(torch.cat([image, maps], dim=1)))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(with_deviation(x)))
        return self.out(activate(self.dense(rearrange(x, "b c h w -> b (c h w)")))).squeeze(1)


class DiscriminatorBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = Conv(channels_in, channels_in)
        self.second = Conv(channels_in, channels_out)
        self.skip = Conv(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h/2 w/2"]:
        y = activate(self.second(halve(activate(self.first(x)), smooth=True)))
        return merge(y, self.skip(halve(x, smooth=True)))


def with_deviation(x: Float[Tensor, "b c h w"], group: int = 4) -> Float[Tensor, "b c+1 h w"]:
    """One more channel: the standard deviation over a group of samples, averaged over features.

    The group is the largest divisor of the batch up to `group`, so that any batch will do.
    """
    size = max(g for g in range(1, group + 1) if len(x) % g == 0)
    groups = rearrange(x, "(g m) c h w -> g m c h w", g=size)
    deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt()
    deviation = reduce(deviation, "m c h w -> m", "mean")
    channel = repeat(deviation, "m -> (g m) 1 h w", g=size, h=x.shape[2], w=x.shape[3])
    return torch.cat([x, channel], dim=1)
