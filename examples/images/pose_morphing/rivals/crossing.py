"""Crossing attention: appearance and shape look at each other, where that is affordable."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import Conv
from examples.images.pose_morphing.attention import to_sites
from examples.images.pose_morphing.config import ModelConfig, parse
from examples.images.pose_morphing.levels import Carried, Given
from examples.images.pose_morphing.rivals.rival import Rival
from ndgpa import Full, Image


class Crossing(Rival):
    """Both sides read all sites of the other, by one matrix of affinities, at coarse levels alone.

    Each side's own strength of what it reads begins at 0.

    Source: Tang et al. 2020 ("XingGAN for person image generation"), equations 1 to 6: the blocks
    of shape guided by appearance and of appearance guided by shape.

    Arguments as of `Skip`.
    """

    def __init__(self, size: tuple[int, int], width: int, config: ModelConfig) -> None:
        super().__init__()
        self.affordable = parse(config.attention).is_full(size)
        self.space = Image(size, block=1)
        lr = config.weight_lr
        self.of_target, self.of_source = (Conv(width, width, 1, lr=lr) for _ in range(2))
        self.target_value, self.source_value = (Conv(width, width, 1, lr=lr) for _ in range(2))
        self.strengths = nn.Parameter(torch.zeros(2))
        self.attention = Full()

    def active(self, coarse_only: bool) -> bool:
        return self.affordable

    def forward(self, given: Given) -> Carried:
        target, source = given.target, given.source
        shape, look = to_sites(self.of_target(target)), to_sites(self.of_source(source))
        read = self.read(shape, look, self.source_value(source))
        shown = self.read(look, shape, self.target_value(target))
        return Carried(target + self.strengths[0] * read, source + self.strengths[1] * shown)

    def read(
        self,
        query: Float[Tensor, "b 1 n c"],
        key: Float[Tensor, "b 1 n c"],
        value: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        out = self.attention(query, key, to_sites(value), self.space)
        return rearrange(out, "b 1 (h w) c -> b c h w", h=value.shape[2])
