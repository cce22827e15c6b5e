"""The copy attention of one level: queries of the target, keys and values of the source."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import Conv, activate, merge
from examples.images.pose_morphing.config import AttentionName, ModelConfig
from examples.images.pose_morphing.levels import Carried, Given, Level
from examples.images.pose_morphing.surface import SurfaceEmbedding
from ndgpa import GPA, Full
from ndgpa.operators import NoAttention

START = 0.1  # size of what a level adds to the queries and keys of the coarser one, at first


class CopyAttention(nn.Module):
    """Projections to queries, keys and values, the operator, and the fusion of what it copied.

    Source: Jetchev et al. 2021, section 3.1 and figures 4 and 12. The options of `ModelConfig` that
    go beyond the paper are there because hard selection has no gradient towards keys that it does
    not read: `pyramid` hands down what the coarser level, which reads all keys, has found.

    Args:
        size: Pixels of the level.
        width: Channels of its features.
        name: The attention, by its parsed name.
        config: The generator's options.
    """

    def __init__(
        self, size: tuple[int, int], width: int, name: AttentionName, config: ModelConfig
    ) -> None:
        super().__init__()
        self.config, self.size, self.name = config, size, name
        self.structure = name.structure(size)
        self.query_width = config.query_width or width
        self.operator = name.operator(size, config.affinity, self.query_width // config.heads)
        seen = width + 2 * config.coordinates
        lr = config.weight_lr
        self.to_query = Conv(seen, self.query_width, 1, lr=lr)
        self.to_key = Conv(seen, self.query_width, 1, lr=lr)
        self.to_value = Conv(width, width, 1, lr=lr)
        if config.pyramid and not isinstance(self.operator, Full):
            with torch.no_grad():
                self.to_query.weight.mul_(START)
                self.to_key.weight.mul_(START)
        self.on_body = SurfaceEmbedding(seen, config) if min(size) == config.body else None
        if config.fusion == "concat":
            self.fuse = Conv(2 * width, width, config.fusion_kernel, lr=lr)
        else:
            self.strength = nn.Parameter(torch.tensor(0.1))
        if config.temperature:
            self.log_temperature = nn.Parameter(torch.tensor(2 * math.log(name.factor(size))))

    def active(self, coarse_only: bool) -> bool:
        if isinstance(self.operator, NoAttention):
            return False
        return not (coarse_only and isinstance(self.operator, GPA))

    def forward(self, given: Given) -> Carried:
        projected = self.project(given)
        features, copied, query, key = self.attend(*projected, given.source, given.pixels)
        level = Level(self.size, copied, query, key, self.structure, self.operator)
        target = self.fused(given.target, features)
        return Carried(target, given.source, copied, handed=projected, level=level)

    def project(self, given: Given) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]]:
        """Queries and keys, on top of those of the next coarser level."""
        target, source, coarser = self.placed(given.target), self.placed(given.source), given.handed
        query, key = self.to_query(target).float(), self.to_key(source).float()
        if coarser is not None and self.config.pyramid:
            query, key = (added(*each) for each in zip((query, key), coarser, strict=True))
        if self.on_body is not None and given.points is not None:
            of_source = given.told
            if of_source is None:
                of_source = self.on_body.read(source, given.points[0])
            query, key = self.on_body((query, key), target, of_source, given.points)
        return query, key

    def tell(
        self, source: Float[Tensor, "b c h w"], points: Float[Tensor, "b 18 3"]
    ) -> Float[Tensor, "b 9 h w"]:
        """Tell of the surface that the source shows, at the level that has `on_body`."""
        assert self.on_body is not None
        return self.on_body.read(self.placed(source), points)

    def placed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Append coordinates, if they are an option."""
        return with_coordinates(x) if self.config.coordinates else x

    def attend(
        self,
        query: Float[Tensor, "b d h w"],
        key: Float[Tensor, "b d h w"],
        source: Float[Tensor, "b c h w"],
        rgb: Float[Tensor, "b 3 h w"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 3 h w"], Tensor, Tensor]:
        """Copied features, copied pixels, and the queries and keys as the operator saw them.

        In float32, also under autocast: distances cancel badly in sixteen bits.
        """
        heads = self.config.heads
        value = to_sites(self.to_value(source).float(), heads)
        if self.config.copy_rgb:
            value = torch.cat([value, to_sites(rgb).expand(-1, heads, -1, -1)], dim=3)
        query, key = (to_sites(self.heat(x), heads) for x in (query, key))
        with torch.autocast(query.device.type, enabled=False):
            out = self.operator(query, key, value, self.structure)
        out, copied = out.split([source.shape[1] // heads, 3 * self.config.copy_rgb], dim=3)
        out = rearrange(out, "b k (h w) c -> b (k c) h w", h=self.size[0])
        if not self.config.copy_rgb:
            return out, torch.zeros_like(rgb), query, key
        copied = rearrange(copied.mean(dim=1), "b (h w) c -> b c h w", h=self.size[0])
        return out, copied, query, key

    def heat(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Scale queries or keys by their half of the temperature.

        A learnt temperature t is over sqrt(d), d that of all heads. It begins at the square of the
        downsampling factor: enlarged from the coarser level, neighbours are as many times closer in
        square distance. What a surface tells has a scale of its own, beside the temperature.
        """
        if not self.config.temperature:
            return x
        sharper = self.config.sharper if isinstance(self.operator, GPA) else 1.0
        seen, told = x.split([self.query_width, x.shape[1] - self.query_width], dim=1)
        seen = seen * (self.log_temperature.exp() / math.sqrt(self.query_width)).sqrt()
        return torch.cat([seen, told], dim=1) * math.sqrt(sharper)

    def fused(
        self, target: Float[Tensor, "b c h w"], copied: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        if self.config.fusion == "residual":
            return target + self.strength * copied
        return merge(target, activate(self.fuse(torch.cat([target, copied], dim=1))))


def with_coordinates(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c+2 h w"]:
    """Append two channels: height and width from -1 to 1."""
    height, width = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
    grid = torch.stack(torch.meshgrid(height, width, indexing="ij"))
    return torch.cat([x, grid.expand(len(x), -1, -1, -1)], dim=1)


def added(x: Float[Tensor, "b d h w"], coarser: Float[Tensor, "b e k l"]) -> Tensor:
    """Add what comes from the coarser level, which may have further channels."""
    further = coarser.shape[1] - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, further)) + enlarge(coarser)


def enlarge(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def to_sites(x: Float[Tensor, "b k*d h w"], heads: int = 1) -> Float[Tensor, "b k n d"]:
    return rearrange(x, "b (k d) h w -> b k (h w) d", k=heads)
