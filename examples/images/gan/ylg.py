"""SAGAN with the sparse attention of Your Local GAN.

Sources: Zhang et al. 2019, "Self-Attention Generative Adversarial Networks"; Daras et al. 2020,
"Your Local GAN: Designing Two Dimensional Local Attention Mechanisms for Generative Models", and
its released code.

Class-conditional: batch norm in the generator and a projection in the discriminator. One layer of
attention at a quarter of the size; its keys are at half the size of its queries.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import ndgpa
from examples.common.attention import operator_of
from examples.images.gan.spectral import conv, linear

FIRST, LEAST_HEADS = 4, 4


@dataclass(frozen=True)
class YLGConfig:
    """Args:
    channels: Widths of the generator's blocks, each of which doubles the size from 4.
    attend_at: The size, in pixels, at which both networks attend.
    latent: Features of the latent.
    classes: How many classes there are.
    attention: What attends in place of the paper's patterns, by name; None for YLG itself.
    heads: Of the attention, at most.
    """

    channels: tuple[int, ...]
    attend_at: int
    latent: int = 128
    classes: int = 1000
    attention: str | None = None
    heads: int = 8

    @property
    def size(self) -> int:
        return FIRST * 2 ** len(self.channels)


PRESETS = {
    "tiny32": YLGConfig((64, 32, 16), 16, 64, 4),
    "tiny64": YLGConfig((128, 96, 64, 32), 32, 64, 4),
    "imagenet128": YLGConfig((1024, 512, 256, 128, 64), 32),
}
SAGAN_PRESETS = {
    name: replace(config, attention="Full(scale=1.0)", heads=1) for name, config in PRESETS.items()
}


class Generator(nn.Module):
    """Make pictures of latents and classes, in -1 to 1."""

    def __init__(self, config: YLGConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.to_grid = linear(config.latent, first * FIRST**2)
        widths = (first, *config.channels)
        self.blocks = nn.ModuleList(
            Up(a, b, config.classes) for a, b in zip(widths, config.channels)
        )
        blocks = int(math.log2(config.attend_at // FIRST))
        self.attention = SelfAttention(config.channels[blocks - 1], config.attention, config.heads)
        self.norm = nn.BatchNorm2d(config.channels[-1])
        self.to_rgb = conv(config.channels[-1], 3)

    def forward(
        self, latent: Float[Tensor, "b z"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 3 size size"]:
        x = rearrange(self.to_grid(latent), "b (c h w) -> b c h w", h=FIRST, w=FIRST)
        for block in self.blocks:
            x = block(x, label)
            if x.shape[-1] == self.config.attend_at:
                x = self.attention(x)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """Judge pictures of a class.

    The features that the attention is given serve the inversion too.
    """

    def __init__(self, config: YLGConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        self.first = FirstDown(widths[0])
        self.blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.last = Down(widths[-1], widths[-1], halve=False)
        # blocks between the first, which halves the picture, and the attention
        self.before = int(math.log2(config.size // config.attend_at)) - 1
        self.attention = SelfAttention(widths[self.before], config.attention, config.heads)
        self.score = linear(widths[-1], 1)
        self.of_class = spectral_norm(nn.Embedding(config.classes, widths[-1]))

    def forward(
        self, picture: Float[Tensor, "b 3 size size"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        x = self.attention(self.features(picture))
        for block in self.blocks[self.before :]:
            x = block(x)
        x = F.relu(self.last(x)).sum(dim=(2, 3))
        return self.score(x)[:, 0] + (self.of_class(label) * x).sum(dim=1)

    def features(self, picture: Float[Tensor, "b 3 size size"]) -> Float[Tensor, "b c s s"]:
        """What the attention is given."""
        x = self.first(picture)
        for block in self.blocks[: self.before]:
            x = block(x)
        return x


class SelfAttention(nn.Module):
    """Attention of SAGAN: queries at full size, keys and values at half; begins as the identity."""

    def __init__(self, channels: int, attention: str | None, heads: int = 8) -> None:
        super().__init__()
        width = max(channels // 8, LEAST_HEADS)
        self.heads = min(heads, width)
        self.to_query = conv(channels, width, 1, bias=False)
        self.to_key = conv(channels, width, 1, bias=False)
        self.to_value = conv(channels, channels // 2, 1, bias=False)
        self.to_out = conv(channels // 2, channels, 1, bias=False)
        self.strength = nn.Parameter(torch.zeros(()))
        self.operator: Any = _pattern(self.heads) if attention is None else operator_of(attention)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        out = self.attend(x, self.by_head(F.max_pool2d(self.to_value(x), 2)))
        out = rearrange(out, "b h (y x) d -> b (h d) y x", y=x.shape[2])
        return x + self.strength * self.to_out(out)

    def attend(
        self, x: Float[Tensor, "b c h w"], value: Float[Tensor, "b heads k d"]
    ) -> Float[Tensor, "b heads q d"]:
        key = F.max_pool2d(self.to_key(x), 2)
        image, key_image = (ndgpa.Image(tuple(y.shape[2:]), 2) for y in (x, key))
        return self.operator(
            self.by_head(self.to_query(x)), self.by_head(key), value, image, key_image
        )

    def by_head(self, x: Float[Tensor, "b h*d y x"]) -> Float[Tensor, "b h y*x d"]:
        return rearrange(x, "b (h d) y x -> b h (y x) d", h=self.heads)

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads q k"]:
        """Return how much each site reads of each key: what is read where values are the identity.

        Of a far field, a key's share of what is read through means is counted too.
        """
        keys = x.shape[2] * x.shape[3] // 4
        identity = torch.eye(keys, dtype=x.dtype, device=x.device)
        return self.attend(x, identity.expand(len(x), self.heads, -1, -1))


def _pattern(heads: int) -> ndgpa.operators.LocalSparse:
    """Right to left in the first half of the heads, left to right in the second."""
    times = heads // 4  # a pattern has two steps
    return ndgpa.operators.LocalSparse(("rtl",) * times + ("ltr",) * times, scale=1.0)


class Up(nn.Module):
    """Double the size, conditioned on a class; a residual block."""

    def __init__(self, channels: int, following: int, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ClassNorm(c, classes) for c in (channels, following))
        self.first = conv(channels, following)
        self.second = conv(following, following)
        self.skip = conv(channels, following, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b f 2*h 2*w"]:
        y = F.interpolate(F.relu(self.norms[0](x, label)), scale_factor=2)
        y = self.second(F.relu(self.norms[1](self.first(y), label)))
        return y + self.skip(F.interpolate(x, scale_factor=2))


class ClassNorm(nn.Module):
    """Batch norm whose gain and shift belong to a class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Embedding(classes, channels)
        self.shift = nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(
        self, x: Float[Tensor, "b c h w"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        gain, shift = (rearrange(e(label), "b c -> b c 1 1") for e in (self.gain, self.shift))
        return gain * self.norm(x) + shift


class FirstDown(nn.Module):
    """The discriminator's first block, on the picture itself."""

    def __init__(self, following: int) -> None:
        super().__init__()
        self.first = conv(3, following)
        self.second = conv(following, following)
        self.skip = conv(3, following, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f h/2 w/2"]:
        y = self.second(F.relu(self.first(x)))
        return F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))


class Down(nn.Module):
    """Halve the size, unless said; a residual block."""

    def __init__(self, channels: int, following: int, halve: bool = True) -> None:
        super().__init__()
        self.first = conv(channels, following)
        self.second = conv(following, following)
        same = channels == following and not halve
        self.skip = nn.Identity() if same else conv(channels, following, 1)
        self.halve = halve

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f ..."]:
        y = self.second(F.relu(self.first(F.relu(x)))) + self.skip(x)
        return F.avg_pool2d(y, 2) if self.halve else y
