"""The generator of StyleNAT: neighbourhood attention of several dilations, styled by a latent.

Source: Walton et al. 2022, "StyleNAT: Giving Each Head a New Perspective", and its released code.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

import ndgpa
from examples.common.attention import operator_of
from examples.common.stylegan2 import Linear, Mapping, double
from examples.images.gan.attention import read_by

STYLE, FIRST, HEAD = 512, 4, 32


@dataclass(frozen=True)
class StyleNATConfig:
    """One entry a level; level i works at 4 * 2^i pixels.

    Args:
        channels: Widths.
        kernel: Keys along each side of a window.
        dilations: Of the parts of the heads; the first level attends to everything.
        style: Features of the style and of the latent.
        attention: What attends in place of the windows, by name; None for StyleNAT itself.
        least_heads: Heads of a level that is too narrow for as many of 32 features.
    """

    channels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    kernel: int = 7
    style: int = STYLE
    attention: str | None = None
    least_heads: int = 4

    @property
    def size(self) -> int:
        return FIRST * 2 ** (len(self.channels) - 1)

    @property
    def latents(self) -> int:
        """Two blocks a level, each with a style of its own."""
        return 2 * len(self.channels)

    def __post_init__(self) -> None:
        for i, dilations in enumerate(self.dilations):
            side = FIRST * 2**i
            if i and max(dilations) * self.kernel > side:
                raise ValueError(
                    f"at {side} pixels a window of {self.kernel} keys {max(dilations)} apart "
                    f"needs {self.kernel * max(dilations)} pixels"
                )


_DILATIONS = ((1,), (1,), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (1, 64), (1, 128))
PRESETS = {
    "tiny32": StyleNATConfig((64, 64, 32, 16), ((1,), (1,), (1, 3), (1, 6)), 5, 64, None, 2),
    "tiny64": StyleNATConfig((128, 128, 128, 64, 64), _DILATIONS[:5], 7, 128),
    "ffhq256": StyleNATConfig((512, 512, 512, 512, 512, 256, 128), _DILATIONS[:7]),
    "ffhq1024": StyleNATConfig((512, 512, 512, 512, 512, 256, 128, 64, 32), _DILATIONS),
}


class Generator(nn.Module):
    """Make pictures of latents: (b, style) to (b, 3, size, size)."""

    def __init__(self, config: StyleNATConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.style)
        self.constant = nn.Parameter(torch.randn(FIRST**2, config.channels[0]))
        self.levels = nn.ModuleList(Level(config, i) for i in range(len(config.channels)))

    def forward(self, latent: Float[Tensor, "b style"]) -> Float[Tensor, "b 3 size size"]:
        style = self.mapping(latent)
        return self.of_styles(style[:, None].expand(-1, self.config.latents, -1))

    def of_styles(self, styles: Float[Tensor, "b latents style"]) -> Float[Tensor, "b 3 size size"]:
        """Make pictures of one style for each block."""
        x = self.constant.expand(len(styles), -1, -1)
        picture: Tensor | None = None
        for i, level in enumerate(self.levels):
            x, picture = level(x, styles[:, 2 * i], styles[:, 2 * i + 1], picture)
        assert picture is not None
        return picture


@torch.no_grad()
def attention_map(
    generator: Generator, latent: Float[Tensor, "b style"], level: int, site: int
) -> Float[Tensor, "b heads side side"]:
    """Return where a pixel of a level looks, in the level's first block, head by head.

    Args:
        level: Its number; its side is 4 * 2^level.
        site: The pixel's number in raster order.
    """
    block, seen = generator.levels[level].blocks[0], []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        generator(latent)
    finally:
        handle.remove()
    x, style, image = seen[0]
    query, key, _ = block.by_head(x, style)
    read = read_by(block.operator, query, key, image, site)
    return rearrange(read, "b h (y x) -> b h y x", y=FIRST * 2**level)


class Level(nn.Module):
    """Two blocks at one size, the step to the next one, and RGB."""

    def __init__(self, config: StyleNATConfig, i: int) -> None:
        super().__init__()
        channels, last = config.channels[i], i + 1 == len(config.channels)
        self.side = FIRST * 2**i
        self.image = ndgpa.Image((self.side, self.side), min(4, self.side))
        self.blocks = nn.ModuleList(Block(config, i) for _ in range(2))
        self.up = None if last else Up(channels, config.channels[i + 1])
        self.to_rgb = nn.Conv2d(channels if last else config.channels[i + 1], 3, 1)
        self.rgb_bias = nn.Parameter(torch.zeros(3, 1, 1))
        nn.init.xavier_normal_(self.to_rgb.weight, gain=0.02)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        first: Float[Tensor, "b style"],
        second: Float[Tensor, "b style"],
        picture: Float[Tensor, "b 3 h w"] | None,
    ) -> tuple[Tensor, Tensor]:
        for block, style in zip(self.blocks, (first, second)):
            x = block(x, style, self.image)
        grid = rearrange(x, "b (h w) c -> b c h w", h=self.side)
        if self.up is not None:
            grid = self.up(grid)
        rgb = self.to_rgb(grid) + self.rgb_bias
        if picture is not None:
            rgb = rgb + (picture if self.up is None else double(picture, smooth=True))
        return rearrange(grid, "b c h w -> b (h w) c"), rgb


class Block(nn.Module):
    """Styled attention, then a styled network for each pixel; each added to its input."""

    def __init__(self, config: StyleNATConfig, i: int) -> None:
        super().__init__()
        channels = config.channels[i]
        heads = max(channels // HEAD, config.least_heads)
        self.norms = nn.ModuleList(StyledNorm(channels, config.style) for _ in range(2))
        self.heads = heads
        self.to_query_key_value = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.operator = _attention(config, i, heads)
        self.pixels = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        for module in (self.to_query_key_value, self.to_out, self.pixels[0], self.pixels[2]):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "b n c"], style: Float[Tensor, "b style"], image: ndgpa.Grid
    ) -> Float[Tensor, "b n c"]:
        out = self.operator(*self.by_head(x, style), image)
        x = x + self.to_out(rearrange(out, "b h n d -> b n (h d)"))
        return x + self.pixels(self.norms[1](x, style))

    def by_head(
        self, x: Float[Tensor, "b n c"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "3 b h n d"]:
        """Return queries, keys and values."""
        y = self.to_query_key_value(self.norms[0](x, style))
        return rearrange(y, "b n (k h d) -> k b h n d", k=3, h=self.heads)


def _attention(config: StyleNATConfig, i: int, heads: int) -> Any:
    if config.attention is not None:
        return operator_of(config.attention)
    if i == 0:
        return FullWithPlaces(FIRST, heads)
    window = (config.kernel, config.kernel)
    return ndgpa.operators.Hydra.of([window], list(config.dilations[i]), rel_bias=True, heads=heads)


class FullWithPlaces(nn.Module):
    """Full attention on a small square with a learnt bias for each head and relative position."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(heads, (2 * side - 1) ** 2))
        nn.init.trunc_normal_(self.bias, std=0.02)
        at = torch.arange(side)
        apart = at[None] - at[:, None] + side - 1  # key less query
        index = apart[:, None, :, None] * (2 * side - 1) + apart[None, :, None, :]
        self.register_buffer("index", index.reshape(side**2, side**2), persistent=False)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *structures: ndgpa.SpatialStructure
    ) -> Tensor:
        bias = self.bias[:, self.index].to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, bias[None])


class StyledNorm(nn.Module):
    """Instance norm whose gain and shift come from the style; the gain is about 0, not 1."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.to_gain_shift = Linear(style, 2 * channels)

    def forward(
        self, x: Float[Tensor, "b n c"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b n c"]:
        gain, shift = self.to_gain_shift(style)[:, None].chunk(2, dim=-1)
        normed = F.instance_norm(x.mT, eps=1e-5).mT
        return gain * normed + shift


class Up(nn.Module):
    """Double the size bilinearly, change the width, and say where each pixel is."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, following, bias=False)
        self.strength = nn.Parameter(torch.zeros(1))
        nn.init.trunc_normal_(self.widen.weight, std=0.02)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f 2*h 2*w"]:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.widen(self.norm(x.movedim(1, 3))).movedim(3, 1)
        return x + self.strength * _sinusoids(x.shape[1], x.shape[2], x)


def _sinusoids(channels: int, side: int, like: Tensor) -> Float[Tensor, "c side side"]:
    """Half of the channels say the column, half the row, counted from 1."""
    count = channels // 4
    rate = torch.exp(torch.arange(count, device=like.device) * -(math.log(10000) / (count - 1)))
    angle = (torch.arange(side, device=like.device) + 1)[:, None] * rate
    line = torch.cat([angle.sin(), angle.cos()], dim=1).T.to(like.dtype)  # (c/2, side)
    column = line[:, None].expand(-1, side, -1)
    row = line[:, :, None].expand(-1, -1, side)
    return torch.cat([column, row])
