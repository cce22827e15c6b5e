"""The generator: two UNets with a copy attention at every level; and the discriminator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import (
    Conv,
    Discriminator,
    ModulatedConv,
    Noise,
    ResidualDown,
    activate,
    double,
    merge,
)
from examples.images.pose_morphing.attention import CopyAttention
from examples.images.pose_morphing.body import located
from examples.images.pose_morphing.config import ModelConfig, parse
from examples.images.pose_morphing.levels import Given, Level
from examples.images.pose_morphing.rivals import RIVALS
from ndgpa import GPA

KEY_POINTS = 18
MASK_START = -1.0  # of the mask's logit: at first the network's own colours count for more


class Encoder(nn.Module):
    """Features of every level, the finest first: a stem, then one block a level.

    Levels that were once the finest of a growing network (`ModelConfig.stems`) keep the stem of
    that time, and add what comes from the finer level with a strength that begins at 0.
    """

    def __init__(self, channels_in: int, config: ModelConfig) -> None:
        super().__init__()
        widths, lr = config.channels, config.weight_lr
        side = 1 if config.stylegan2 else 3
        self.stem = Conv(channels_in, widths[0], side, lr=lr)
        block = ResidualDown if config.stylegan2 else LightDown
        self.down = nn.ModuleList(block(i, o, lr) for i, o in pairwise(widths))
        once_finest = widths[1 : config.stems]
        self.stems = nn.ModuleList(Conv(channels_in, width, side, lr=lr) for width in once_finest)
        self.strengths = nn.ParameterList(torch.zeros(()) for _ in once_finest)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        levels = [activate(self.stem(x))]
        for i, block in enumerate(self.down):
            finer = block(levels[-1])
            if i < len(self.stems):
                own = activate(self.stems[i](F.avg_pool2d(x, 2 ** (i + 1))))
                finer = own + self.strengths[i] * finer
            levels.append(finer)
        return levels


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
class Morph:
    """The person of the source in the pose of the target, and how it was copied."""

    image: Float[Tensor, "b 3 h w"]  # about -1 to 1
    levels: list[Level]  # the finest first; levels without attention are left out
    copied: list[Float[Tensor, "b 3 k l"]]  # source pixels in the target's places, the finest first

    def split(self, counts: list[int]) -> "list[Morph]":
        """Split the samples into groups of these sizes."""
        levels = [level.split(counts) for level in self.levels]
        copied = [x.split(counts) for x in self.copied]
        return [
            Morph(image, [each[i] for each in levels], [each[i] for each in copied])
            for i, image in enumerate(self.image.split(counts))
        ]


class Generator(nn.Module):
    """G(M1, B1, B2) of Jetchev et al. 2021, figures 4 and 12, tables 2 to 4.

    Args:
        config: A preset, or one's own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        lr = config.weight_lr
        self.source_encoder = Encoder(3 + KEY_POINTS, config)
        self.target_encoder = Encoder(KEY_POINTS, config)
        self.source_decoder, self.target_decoder = up_blocks(config), up_blocks(config)
        self.attentions = nn.ModuleList(
            carrier(size, width, config)
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
        features: Sequence[Tensor] | None = None,
    ) -> Morph:
        """Render the person of `source` in the pose of `target_maps`.

        Args:
            source: Pixels from -1 to 1.
            source_maps, target_maps: Heat maps of the 18 key points.
            coarse_only: Leave out the attentions that select, as in a warm-up.
            features: What `read` gave for this source, to save that work.
        """
        from_source = [] if features else self.encode(source, source_maps)
        from_target = self.target_encoder(target_maps)
        style, pixels = style_of(from_target), pyramid(source, len(from_target))
        points = told = None
        if self.config.body:
            points = located(source_maps), located(target_maps)
            told = next(iter((features or [])[len(self.attentions) :]), None)
        s = t = handed = image = None
        levels: list[Level] = []
        copies: list[Tensor] = []
        active = [attention.active(coarse_only) for attention in self.attentions]
        for i in reversed(range(len(self.attentions))):
            copied = mask = None
            t = self.target_decoder[i](t, from_target[i], style)
            if features:
                s = features[i]
            elif any(active[: i + 1]):  # nobody reads the source at finer levels
                s = self.source_decoder[i](s, from_source[i], style_of(from_source))
            if active[i]:
                given = Given(t, s, pixels[i], source_maps, target_maps, handed, points, told)
                carried = self.attentions[i](given)
                t, s, handed = carried.target, carried.source, carried.handed
                copied = carried.copied if self.config.copy_rgb else None
                levels = [carried.level, *levels] if carried.level else levels
                copies = copies if copied is None else [copied, *copies]
            rgb = self.to_rgb[i](t)
            if self.config.copy_rgb:
                rgb, mask = rgb[:, :3], rgb[:, 3:].sigmoid()
            image = self.paint(image, rgb, copied, mask)
        assert image is not None
        return Morph(image, levels, copies)

    def encode(
        self, source: Float[Tensor, "b 3 h w"], source_maps: Float[Tensor, "b 18 h w"]
    ) -> list[Tensor]:
        levels: list[Tensor] = self.source_encoder(torch.cat([source, source_maps], dim=1))
        return levels

    def read(
        self, source: Float[Tensor, "b 3 h w"], source_maps: Float[Tensor, "b 18 h w"]
    ) -> list[Tensor]:
        """Make what does not depend on the pose: features of the source, the finest level first.

        After them, if the network is told of surfaces, that of the source.

        Raises:
            ValueError: Something at a level changes the features of the source for finer ones.
        """
        if not all(isinstance(each, CopyAttention) for each in self.attentions):
            raise ValueError(f"{self.config.attention} reads a source anew for every pose")
        from_source, s = self.encode(source, source_maps), None
        features = []
        for i in reversed(range(len(from_source))):
            s = self.source_decoder[i](s, from_source[i], style_of(from_source))
            features.insert(0, s)
        if self.config.body:
            points = located(source_maps)
            levels = list(zip(self.attentions, features, strict=True))
            features += [each.tell(s, points) for each, s in levels if each.on_body is not None]
        return features

    def paint(
        self, coarser: Tensor | None, rgb: Tensor, copied: Tensor | None, mask: Tensor | None
    ) -> Float[Tensor, "b 3 h w"]:
        """Enlarge the coarser picture, blend copied pixels in, add the level's own colours."""
        image = torch.zeros_like(rgb) if coarser is None else double(coarser, self.config.stylegan2)
        if copied is not None and mask is not None:
            image = image + mask * (copied - image)
        return image + rgb


def selecting(generator: Generator) -> list[CopyAttention]:
    """List the levels whose attention reads key blocks that it chooses."""
    copying = [each for each in generator.attentions if isinstance(each, CopyAttention)]
    return [each for each in copying if isinstance(each.operator, GPA)]


def set_kappa(generator: Generator, kappa: int) -> None:
    """Read another number of key blocks from now on; a trained generator takes any."""
    for attention in selecting(generator):
        rule = replace(attention.name, kappa=kappa).rule
        attention.operator = replace(attention.operator, rule=rule)


def carrier(size: tuple[int, int], width: int, config: ModelConfig) -> nn.Module:
    """Build what looks at the source at a level: a `Carrier`, by the name of the attention."""
    name = parse(config.attention)
    if name.kind in RIVALS:
        return RIVALS[name.kind](size, width, config)
    return CopyAttention(size, width, name, config)


def pyramid(image: Float[Tensor, "b 3 h w"], levels: int) -> list[Float[Tensor, "b 3 k l"]]:
    """Return the picture at the size of every level, the finest first."""
    return [F.avg_pool2d(image, 2**i) if i else image for i in range(levels)]


def discriminator_of(config: ModelConfig) -> Discriminator:
    """Build the judge of (picture, heat maps), as wide as the generator: table 3 of the paper."""
    return Discriminator(3 + KEY_POINTS, config.channels, math.prod(config.sizes[-1]))
