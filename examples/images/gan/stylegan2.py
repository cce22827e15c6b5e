"""The skip generator of StyleGAN2: convolutions alone, or with one layer of attention.

Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN". The layers are
those of `examples.common.stylegan2`, and the attention is that of SAGAN.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import (
    Conv,
    Linear,
    Mapping,
    ModulatedConv,
    Noise,
    activate,
    double,
)
from examples.images.gan.ylg import SelfAttention

FIRST, PER_LEVEL = 4, 2  # side of the first level; styles of each


@dataclass(frozen=True)
class StyleGAN2Config:
    """One entry a level; level i works at 4 * 2^i pixels.

    Args:
        channels: Widths.
        style: Features of the style and of the latent.
        mapping: Layers between the two.
        attend_at: The size, in pixels, at which `attention` attends.
        attention: By name; None for StyleGAN2 itself, which has none.
    """

    channels: tuple[int, ...]
    style: int = 512
    mapping: int = 8
    attend_at: int = 16
    attention: str | None = None

    @property
    def size(self) -> int:
        return FIRST * 2 ** (len(self.channels) - 1)

    @property
    def latents(self) -> int:
        return PER_LEVEL * len(self.channels)


PRESETS = {
    "tiny32": StyleGAN2Config((64, 64, 32, 16), 64, 4),
    "tiny64": StyleGAN2Config((128, 128, 64, 32, 16), 128, 4),
    "ffhq256": StyleGAN2Config((512, 512, 512, 512, 512, 256, 128)),
    "ffhq1024": StyleGAN2Config((512, 512, 512, 512, 512, 256, 128, 64, 32)),
}


class Generator(nn.Module):
    """Make pictures of latents: (b, style) to (b, 3, size, size)."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.style, config.mapping)
        self.constant = nn.Parameter(torch.randn(config.channels[0], FIRST, FIRST))
        before = (config.channels[0], *config.channels)
        self.levels = nn.ModuleList(
            Level(config, i, a, b) for i, (a, b) in enumerate(zip(before, config.channels))
        )

    def forward(self, latent: Float[Tensor, "b style"]) -> Float[Tensor, "b 3 size size"]:
        style = self.mapping(latent)
        return self.of_styles(style[:, None].expand(-1, self.config.latents, -1))

    def of_styles(self, styles: Float[Tensor, "b latents style"]) -> Float[Tensor, "b 3 size size"]:
        """Make pictures of one style for each convolution; RGB has that of the second."""
        x = self.constant.expand(len(styles), -1, -1, -1)
        picture: Tensor | None = None
        for i, level in enumerate(self.levels):
            x, picture = level(x, styles[:, PER_LEVEL * i], styles[:, PER_LEVEL * i + 1], picture)
        assert picture is not None
        return picture


class Level(nn.Module):
    """Two styled convolutions at one size, attention where it is asked for, and RGB."""

    def __init__(self, config: StyleGAN2Config, i: int, before: int, channels: int) -> None:
        super().__init__()
        self.first = Styled(before, channels, config.style) if i else None
        self.second = Styled(channels, channels, config.style)
        attends = config.attention is not None and config.attend_at == FIRST * 2**i
        self.attention = SelfAttention(channels, config.attention) if attends else None
        self.to_rgb = ToRGB(channels, config.style)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        first: Float[Tensor, "b style"],
        second: Float[Tensor, "b style"],
        picture: Float[Tensor, "b 3 h w"] | None,
    ) -> tuple[Tensor, Tensor]:
        if self.first is not None:
            x = self.first(double(x, smooth=True), first)
        x = self.second(x, second)
        if self.attention is not None:
            x = self.attention(x)
        rgb = self.to_rgb(x, second)
        return x, rgb if picture is None else rgb + double(picture, smooth=True)


class Styled(nn.Module):
    """A modulated convolution, noise, and the leaky ReLU."""

    def __init__(self, channels: int, following: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(channels, following, style)
        self.noise = Noise()

    def forward(
        self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b f h w"]:
        return activate(self.noise(self.conv(x, style)))


class ToRGB(nn.Module):
    """A convolution of one pixel, modulated and not demodulated."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.conv = Conv(channels, 3, 1)
        self.to_scale = Linear(style, channels, bias=1.0)

    def forward(
        self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b 3 h w"]:
        return self.conv(x * self.to_scale(style)[:, :, None, None])
