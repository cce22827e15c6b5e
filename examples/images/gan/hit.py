"""The generator and discriminator of HiT.

Source: Zhao et al. 2021, "Improved Transformer for High-Resolution Generative Adversarial
Networks", and its released code, whose tables these are.

Low-resolution stages attend within blocks and across blocks, half of the heads each (`MultiAxis`);
high-resolution ones are per-pixel networks. Every stage also attends to 16 tokens made of the
latent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

import ndgpa
from examples.common.attention import operator_of
from examples.common.stylegan2 import halve, merge
from ndgpa.nn import SpatialAttention

FIRST, TOKENS, TOKEN_WIDTH = 8, 16, 512  # side of the first stage; tokens of the latent


@dataclass(frozen=True)
class HiTConfig:
    """One entry a stage; stage i works at 8 * 2^i pixels.

    Args:
        layers: Layers of self-attention, or of the per-pixel network.
        channels, heads: Widths.
        block: Side of a block of the attention; None for a stage without it, which makes RGB.
        latent: Features of the latent.
        attention: What attends in place of `MultiAxis`, by name; None for HiT itself.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    heads: tuple[int, ...]
    block: tuple[int | None, ...]
    latent: int = 512
    attention: str | None = None

    @property
    def size(self) -> int:
        return FIRST * 2 ** (len(self.channels) - 1)


PRESETS = {
    "tiny32": HiTConfig((1, 1, 1), (64, 48, 24), (4, 4, 4), (4, 4, None), 64),
    "tiny64": HiTConfig((1, 1, 1, 1), (128, 96, 64, 32), (4, 4, 4, 4), (4, 4, 8, None), 128),
    "imagenet128": HiTConfig(
        (2, 2, 2, 2, 2), (512, 512, 256, 128, 128), (16, 8, 4, 4, 4), (4, 4, 8, 8, None), 256
    ),
    "ffhq256": HiTConfig(
        (2, 2, 2, 2, 1, 1),
        (512, 512, 256, 128, 64, 64),
        (16, 8, 4, 4, 4, 4),
        (4, 4, 8, 8, None, None),
    ),
    "ffhq1024": HiTConfig(
        (2, 2, 2, 2, 1, 1, 1, 1),
        (512, 512, 256, 128, 64, 64, 32, 32),
        (16, 8, 4, 4, 4, 4, 4, 4),
        (4, 4, 8, 8, None, None, None, None),
    ),
}


class Generator(nn.Module):
    """Make pictures of latents: (b, latent) to (b, 3, size, size), about -1 to 1."""

    def __init__(self, config: HiTConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.to_grid = nn.Linear(config.latent, first * FIRST**2)
        self.to_tokens = nn.Linear(config.latent, TOKENS * TOKEN_WIDTH)
        self.token_place = _place(TOKENS, TOKEN_WIDTH)
        self.token_norm = Norm(TOKEN_WIDTH)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.channels)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, latent: Float[Tensor, "b z"]) -> Float[Tensor, "b 3 size size"]:
        x = rearrange(self.to_grid(latent), "b (n c) -> b n c", n=FIRST**2)
        tokens = rearrange(self.to_tokens(latent), "b (n c) -> b n c", n=TOKENS)
        tokens = self.token_norm(tokens + self.token_place)
        picture: Tensor | None = None
        for stage in self.stages:
            x, picture = stage(x, tokens, picture)
        assert picture is not None
        return picture


class Stage(nn.Module):
    """All that happens at one size; the features leave it at twice the size."""

    def __init__(self, config: HiTConfig, i: int) -> None:
        super().__init__()
        channels, heads, block = config.channels[i], config.heads[i], config.block[i]
        self.side = FIRST * 2**i
        self.image = ndgpa.Image((self.side, self.side), block or 1)
        self.place = _place(self.side**2, channels)
        self.from_tokens = AttentionLayer(
            channels, _attention(channels, heads, ndgpa.Full(), TOKEN_WIDTH)
        )
        self.layers = nn.ModuleList(
            _layer(channels, heads, block, config.attention) for _ in range(config.layers[i])
        )
        self.to_rgb = nn.Sequential(Norm(channels), nn.Linear(channels, 3)) if not block else None
        last = i + 1 == len(config.channels)
        following = channels // 4 if last else config.channels[i + 1]
        self.widen = nn.Linear(channels // 4, following) if channels // 4 != following else None
        self.last = last

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        tokens: Float[Tensor, "b t e"],
        picture: Float[Tensor, "b 3 h w"] | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = self.from_tokens(x + self.place, self.image, tokens)
        for layer in self.layers:
            x = layer(x, self.image)
        if self.to_rgb is not None:
            rgb = rearrange(self.to_rgb(x), "b (h w) c -> b c h w", h=self.side)
            picture = rgb if picture is None else rgb + F.interpolate(picture, scale_factor=2)
        if not self.last:
            x = rearrange(
                x, "b (h w) (y x c) -> b (h y w x) c", h=self.side, y=2, x=2
            )  # a pixel's channels become four pixels
            x = x if self.widen is None else self.widen(x)
        return x, picture


def _layer(channels: int, heads: int, block: int | None, attention: str | None) -> nn.Module:
    if block is None:
        return PixelLayer(channels)
    operator = ndgpa.operators.MultiAxis() if attention is None else operator_of(attention)
    return AttentionLayer(channels, _attention(channels, heads, operator, channels))


def _attention(channels: int, heads: int, operator: Any, context: int) -> SpatialAttention:
    """Attention with biases and one head of keys and values ("multi-query")."""
    return SpatialAttention(
        channels, heads, key_dim=context, operator=operator, key_heads=1, bias=True
    )


class PixelLayer(nn.Module):
    """A network of two layers for each pixel, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.inner = nn.Linear(channels, 4 * channels)
        self.outer = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b n c"], structure: Any = None) -> Float[Tensor, "b n c"]:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


class AttentionLayer(nn.Module):
    """Attention, then the network for each pixel; each added to its input."""

    def __init__(self, channels: int, attention: SpatialAttention) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.attention = attention
        self.pixels = PixelLayer(channels)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        structure: ndgpa.SpatialStructure,
        tokens: Float[Tensor, "b t e"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        of_tokens = None if tokens is None else ndgpa.Sequence(TOKENS, TOKENS)
        x = x + self.attention(self.norm(x), structure, tokens, of_tokens)
        return self.pixels(x)


class Norm(nn.Module):
    """Batch norm over all sites, with the constants of Keras."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.norm(x.flatten(0, 1)).view_as(x)


def _place(sites: int, channels: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(sites, channels), std=0.02))


def official_widths(size: int, multiplier: int = 2) -> tuple[int, ...]:
    """Return the discriminator's channels of the released code, from `size` down to 4 pixels.

    Args:
        size: Side of the pictures, a power of 2.
        multiplier: Of the channels at 64 pixels and more; 1 for ImageNet, 2 for faces.
    """
    sides = [2**i for i in range(int(math.log2(size)), 1, -1)]
    return tuple(min(512, 16384 * multiplier // side) for side in sides)


class Discriminator(nn.Module):
    """A residual network of StyleGAN2's form, without its equalised rate and minibatch deviation.

    It begins as layers of Keras do, uniform by Glorot and Bengio 2010. Torch's own smaller weights
    lose pictures on their way through the layers, and the score hardly depends on them.

    Args:
        widths: Channels at each size, from the pictures' own down to 4 pixels.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.dense = nn.Linear(16 * widths[-1], widths[-1])
        self.score = nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, picture: Float[Tensor, "b 3 size size"]) -> Float[Tensor, " b"]:
        x = F.leaky_relu(self.from_rgb(picture), 0.2)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.last(x), 0.2)
        return self.score(F.leaky_relu(self.dense(x.flatten(1)), 0.2))[:, 0]


class Down(nn.Module):
    """Halve the size; a residual block."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, following, 1, bias=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, following, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h/2 w/2"]:
        y = halve(F.leaky_relu(self.first(x), 0.2))
        y = F.leaky_relu(self.second(y), 0.2)
        return merge(y, self.skip(halve(x)))
