"""The generator: two UNets with a copy attention at every level; and the discriminator."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.pose_morphing.attention import CopyAttention
from examples.images.pose_morphing.config import ModelConfig, parse
from examples.images.pose_morphing.layers import (
    Conv,
    Linear,
    ModulatedConv,
    Noise,
    activate,
    double,
    halve,
    merge,
)
from ndgpa import GPA, Image
from ndgpa.operators import NoAttention, Operator

KEY_POINTS = 18
MASK_START = -1.0  # of the mask's logit: at first the network's own colours count for more


class Encoder(nn.Module):
    """Features of every level, the finest first: a stem, then one block a level."""

    def __init__(self, channels_in: int, config: ModelConfig) -> None:
        super().__init__()
        widths, lr = config.channels, config.weight_lr
        self.stem = Conv(channels_in, widths[0], 1 if config.stylegan2 else 3, lr=lr)
        block = ResidualDown if config.stylegan2 else LightDown
        self.down = nn.ModuleList(block(i, o, lr) for i, o in pairwise(widths))

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        levels = [activate(self.stem(x))]
        for block in self.down:
            levels.append(block(levels[-1]))
        return levels


class ResidualDown(nn.Module):
    """Half the size: the residual block of StyleGAN2's discriminator."""

    def __init__(self, channels_in: int, channels_out: int, lr: float = 1.0) -> None:
        super().__init__()
        self.first = Conv(channels_in, channels_in, lr=lr)
        self.second = Conv(channels_in, channels_out, lr=lr)
        self.skip = Conv(channels_in, channels_out, 1, lr=lr)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h/2 w/2"]:
        y = activate(self.second(halve(activate(self.first(x)))))
        return merge(y, self.skip(halve(x)))


class LightDown(nn.Module):
    """Half the size by a stride, then a residual convolution."""

    def __init__(self, channels_in: int, channels_out: int, lr: float = 1.0) -> None:
        super().__init__()
        self.reduce = Conv(channels_in, channels_out, stride=2, lr=lr)
        self.refine = Conv(channels_out, channels_out, lr=lr)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h/2 w/2"]:
        x = activate(self.reduce(x))
        return merge(x, activate(self.refine(x)))


class Convolution(nn.Module):
    """A 3x3 convolution of the decoder: modulated by the style, with noise, as configured."""

    def __init__(self, channels_in: int, channels_out: int, config: ModelConfig) -> None:
        super().__init__()
        lr = config.weight_lr
        self.conv: Conv | ModulatedConv
        if config.style:
            self.conv = ModulatedConv(channels_in, channels_out, config.channels[-1], lr=lr)
        else:
            self.conv = Conv(channels_in, channels_out, lr=lr)
        self.noise = Noise() if config.noise else None

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b o h w"]:
        x = self.conv(x, style) if isinstance(self.conv, ModulatedConv) else self.conv(x)
        return activate(x if self.noise is None else self.noise(x))


class UpBlock(nn.Module):
    """One decoder level of StyleGAN2: twice the size, and two convolutions.

    The encoder's features join between the two. The coarsest level has those alone, and one
    convolution.

    Args:
        coarser: Channels of the level below; 0 for the coarsest level, which has none.
        width: Channels of this level, in and out.
        config: For the kind of convolution.
    """

    def __init__(self, coarser: int, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.first = Convolution(coarser, width, config) if coarser else None
        self.second = Convolution(2 * width if coarser else width, width, config)

    def forward(
        self,
        coarser: Float[Tensor, "b i h/2 w/2"] | None,
        skip: Float[Tensor, "b o h w"],
        style: Float[Tensor, "b s"],
    ) -> Float[Tensor, "b o h w"]:
        if coarser is None or self.first is None:
            return self.second(skip, style)
        x = self.first(double(coarser, smooth=True), style)
        return self.second(torch.cat([x, skip], dim=1), style)


class LightUp(nn.Module):
    """One decoder level: the nearest pixels, the encoder's features beside, one convolution.

    Arguments as of `UpBlock`.
    """

    def __init__(self, coarser: int, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.merge = Convolution(coarser + width, width, config)

    def forward(
        self,
        coarser: Float[Tensor, "b i h/2 w/2"] | None,
        skip: Float[Tensor, "b o h w"],
        style: Float[Tensor, "b s"],
    ) -> Float[Tensor, "b o h w"]:
        if coarser is not None:
            skip = torch.cat([F.interpolate(coarser, scale_factor=2.0), skip], dim=1)
        return self.merge(skip, style)


def up_blocks(config: ModelConfig) -> nn.ModuleList:
    """Build the decoder's blocks, the finest first."""
    widths = config.channels
    block = UpBlock if config.stylegan2 else LightUp
    return nn.ModuleList(block(c, w, config) for c, w in zip((*widths[1:], 0), widths, strict=True))


def style_of(levels: list[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c"]:
    """Average the last encoder layer, as in the paper."""
    return levels[-1].mean((2, 3))


@dataclass(frozen=True)
class Level:
    """What one attention was asked and what it copied, for losses, measures and pictures."""

    size: tuple[int, int]  # pixels
    copied: Float[Tensor, "b 3 h w"]  # source pixels, averaged as the attention weighs them
    query: Float[Tensor, "b k n d"]  # k heads
    key: Float[Tensor, "b k n d"]
    structure: Image
    operator: Operator

    def split(self, counts: list[int]) -> "list[Level]":
        """Split the samples into groups of these sizes."""
        parts = zip(*(x.split(counts) for x in (self.copied, self.query, self.key)), strict=True)
        return [replace(self, copied=copied, query=query, key=key) for copied, query, key in parts]


@dataclass(frozen=True)
class Morph:
    """The person of the source in the pose of the target, and how it was copied."""

    image: Float[Tensor, "b 3 h w"]  # about -1 to 1
    levels: list[Level]  # the finest first; levels without attention are left out

    def split(self, counts: list[int]) -> "list[Morph]":
        """Split the samples into groups of these sizes."""
        levels = [level.split(counts) for level in self.levels]
        images = self.image.split(counts)
        return [Morph(image, [each[i] for each in levels]) for i, image in enumerate(images)]


class Generator(nn.Module):
    """G(M1, B1, B2) of Jetchev et al. 2021, figures 4 and 12, tables 2 to 4.

    Args:
        config: A preset, or one's own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        name = parse(config.attention)
        lr = config.weight_lr
        self.source_encoder = Encoder(3 + KEY_POINTS, config)
        self.target_encoder = Encoder(KEY_POINTS, config)
        self.source_decoder, self.target_decoder = up_blocks(config), up_blocks(config)
        self.attentions = nn.ModuleList(
            CopyAttention(size, width, name, config)
            for size, width in zip(config.sizes, config.channels, strict=True)
        )
        out = 3 + config.copy_rgb
        self.to_rgb = nn.ModuleList(Conv(width, out, 1, lr=lr) for width in config.channels)
        if config.copy_rgb:
            for conv in self.to_rgb:
                nn.init.constant_(conv.bias[3:], MASK_START)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_maps: Float[Tensor, "b 18 h w"],
        target_maps: Float[Tensor, "b 18 h w"],
        coarse_only: bool = False,
    ) -> Morph:
        """Render the person of `source` in the pose of `target_maps`.

        Args:
            source: Pixels from -1 to 1.
            source_maps, target_maps: Heat maps of the 18 key points.
            coarse_only: Leave out the attentions that select, as in a warm-up.
        """
        features = self.read(source, source_maps, coarse_only)
        return self.render(features, source, target_maps, coarse_only)

    def read(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_maps: Float[Tensor, "b 18 h w"],
        coarse_only: bool = False,
    ) -> Iterator[Tensor]:
        """Make what does not depend on the pose: features of the source, the coarsest level first.

        It ends before the first level that nobody reads.
        """
        from_source = self.source_encoder(torch.cat([source, source_maps], dim=1))
        style, s = style_of(from_source), None
        read = [i for i, x in enumerate(self.attentions) if attends(x.operator, coarse_only)]
        for i in reversed(range(min(read, default=len(from_source)), len(from_source))):
            s = self.source_decoder[i](s, from_source[i], style)
            yield s

    def render(
        self,
        features: Iterable[Tensor],
        source: Float[Tensor, "b 3 h w"],
        target_maps: Float[Tensor, "b 18 h w"],
        coarse_only: bool = False,
    ) -> Morph:
        """Render the person whose features `read` gave; arguments as of `forward`."""
        from_target = self.target_encoder(target_maps)
        style, pixels = style_of(from_target), pyramid(source, len(from_target))
        t = projected = image = None
        levels = []
        features = iter(features)
        for i in reversed(range(len(self.attentions))):
            attention = self.attentions[i]
            copied = mask = None
            t = self.target_decoder[i](t, from_target[i], style)
            s = next(features, None)
            if attends(attention.operator, coarse_only):
                projected = attention.project(t, s, projected)
                found, copied, query, key = attention.attend(*projected, s, pixels[i])
                t = attention.fused(t, found)
                level = Level(
                    attention.size, copied, query, key, attention.structure, attention.operator
                )
                levels.insert(0, level)
            rgb = self.to_rgb[i](t)
            if self.config.copy_rgb:
                rgb, mask = rgb[:, :3], rgb[:, 3:].sigmoid()
            image = self.paint(image, rgb, copied, mask)
        assert image is not None
        return Morph(image, levels)

    def paint(
        self, coarser: Tensor | None, rgb: Tensor, copied: Tensor | None, mask: Tensor | None
    ) -> Float[Tensor, "b 3 h w"]:
        """Enlarge the coarser picture, blend copied pixels in, add the level's own colours."""
        image = torch.zeros_like(rgb) if coarser is None else double(coarser, self.config.stylegan2)
        if copied is not None and mask is not None:
            image = image + mask * (copied - image)
        return image + rgb


def set_kappa(generator: Generator, kappa: int) -> None:
    """Read another number of key blocks from now on; a trained generator takes any."""
    for attention in generator.attentions:
        if isinstance(attention.operator, GPA):
            rule = replace(attention.name, kappa=kappa).rule
            attention.operator = replace(attention.operator, rule=rule)


def attends(operator: Operator, coarse_only: bool) -> bool:
    return not isinstance(operator, NoAttention) and not (coarse_only and isinstance(operator, GPA))


def pyramid(image: Float[Tensor, "b 3 h w"], levels: int) -> list[Float[Tensor, "b 3 k l"]]:
    """Return the picture at the size of every level, the finest first."""
    return [F.avg_pool2d(image, 2**i) if i else image for i in range(levels)]


class Discriminator(nn.Module):
    """The residual discriminator of StyleGAN2 over (picture, heat maps), as wide as the generator.

    Source: Karras et al. 2020, and table 3 of Jetchev et al. 2021.
    """

    def __init__(self, config: ModelConfig, channels_in: int = 21) -> None:
        super().__init__()
        widths = config.channels
        self.stem = Conv(channels_in, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualDown(i, o) for i, o in pairwise(widths))
        self.last = Conv(widths[-1] + 1, widths[-1])
        area = math.prod(config.sizes[-1])
        self.dense = Linear(widths[-1] * area, widths[-1])
        self.out = Linear(widths[-1], 1)

    def forward(
        self, image: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 18 h w"]
    ) -> Float[Tensor, " b"]:
        """Return one logit for each pair; higher is more real."""
        x = activate(self.stem(torch.cat([image, maps], dim=1)))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(with_deviation(x)))
        return self.out(activate(self.dense(rearrange(x, "b c h w -> b (c h w)")))).squeeze(1)


def with_deviation(x: Float[Tensor, "b c h w"], group: int = 4) -> Float[Tensor, "b c+1 h w"]:
    """Append the standard deviation over a group of samples, averaged over features.

    The group is the largest divisor of the batch up to `group`, so that any batch will do.
    """
    size = max(g for g in range(1, group + 1) if len(x) % g == 0)
    groups = rearrange(x, "(g m) c h w -> g m c h w", g=size)
    deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt()
    deviation = reduce(deviation, "m c h w -> m", "mean")
    channel = repeat(deviation, "m -> (g m) 1 h w", g=size, h=x.shape[2], w=x.shape[3])
    return torch.cat([x, channel], dim=1)
