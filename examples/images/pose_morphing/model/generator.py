"""The generator: a source UNet, a target UNet, and a copy attention at every level."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.pose_morphing.model.attention_names import parse
from examples.images.pose_morphing.model.config import ModelConfig
from examples.images.pose_morphing.model.copy_attention import CopyAttention
from examples.images.pose_morphing.model.layers import Conv, double
from examples.images.pose_morphing.model.unet import Encoder, style_of, up_blocks
from ndgpa import GPA, Image, Nothing
from ndgpa.operators import Operator

KEY_POINTS = 18
MASK_START = -1.0  # of the mask's logit: at first the network's own colours count for more


@dataclass(frozen=True)
class Level:
    """What one attention was asked and what it copied, for losses, measures and pictures."""

    size: tuple[int, int]  # pixels
    copied: Float[Tensor, "b 3 h w"]  # source pixels, averaged as the attention weighs them
    query: Float[Tensor, "b 1 n d"]
    key: Float[Tensor, "b 1 n d"]
    structure: Image
    operator: Operator


@dataclass(frozen=True)
class Morph:
    """The person of the source in the pose of the target, and how it was copied."""

    image: Float[Tensor, "b 3 h w"]  # about -1 to 1
    levels: list[Level]  # the finest first; levels without attention are left out


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
        from_source = self.source_encoder(torch.cat([source, source_maps], dim=1))
        from_target = self.target_encoder(target_maps)
        styles = style_of(from_source), style_of(from_target)
        pixels = pyramid(source, len(from_source))
        s = t = projected = image = None
        levels = []
        active = [attends(attention.operator, coarse_only) for attention in self.attentions]
        for i in reversed(range(len(self.attentions))):
            attention = self.attentions[i]
            copied = mask = None
            t = self.target_decoder[i](t, from_target[i], styles[1])
            if any(active[: i + 1]):  # nobody reads the source at finer levels
                s = self.source_decoder[i](s, from_source[i], styles[0])
            if active[i]:
                projected = attention.project(t, s, projected)
                features, copied, query, key = attention.attend(*projected, s, pixels[i])
                t = attention.fused(t, features)
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
        image = torch.zeros_like(rgb) if coarser is None else double(coarser, self.config.smooth)
        if copied is not None and mask is not None:
            image = image + mask * (copied - image)
        return image + rgb


def set_kappa(generator: Generator, kappa: int) -> None:
    """Read another number of key blocks from now on; a trained generator takes any."""
    for attention in generator.attentions:
        if isinstance(attention.operator, GPA):
            attention.operator = replace(attention.operator, rule=kappa)


def attends(operator: Operator, coarse_only: bool) -> bool:
    return not isinstance(operator, Nothing) and not (coarse_only and isinstance(operator, GPA))


def pyramid(image: Float[Tensor, "b 3 h w"], levels: int) -> list[Float[Tensor, "b 3 k l"]]:
    """The picture at the size of every level, the finest first."""
    return [F.avg_pool2d(image, 2**i) if i else image for i in range(levels)]
