"""Where each site of a small grey picture lies in another: full attention at low resolution.

Shapes: b batch, c channels, h w a full-resolution picture, l k the small ones. Positions are (x, y)
from -1 to 1 across a picture, as in `torch.nn.functional.affine_grid`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.copy_photo.data import degrade, distort
from ndgpa import Full, Image


@dataclass(frozen=True)
class Match:
    """What one round found."""

    position: Float[Tensor, "b 2 l k"]  # in the source, of each site of the target
    theta: Float[Tensor, "b 2 3"]  # the affine map fitted to the positions
    colour: Float[Tensor, "b 3 l k"]  # copied from the small source


class Embedding(nn.Module):
    """Unit vectors that describe the surroundings of each site of a small grey picture."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=reach, dilation=reach) for reach in (1, 2, 1)
        )
        self.out = nn.Conv2d(width, features, 1)

    def forward(self, grey: Float[Tensor, "b 1 l k"]) -> Float[Tensor, "b c l k"]:
        mean = F.avg_pool2d(grey, 7, 1, 3, count_include_pad=False)
        variance = F.avg_pool2d((grey - mean) ** 2, 7, 1, 3, count_include_pad=False)
        contrast = (grey - mean) / (variance + 1e-4).sqrt()
        x = F.leaky_relu(self.stem(torch.cat([contrast, 2 * grey - 1], dim=1)), 0.2)
        for block in self.blocks:
            x = x + F.leaky_relu(block(x), 0.2)
        return F.normalize(self.out(x), dim=1)


class Matcher(nn.Module):
    """Finds the affine map from a degraded target to its sharp source, in rounds.

    A round compares the embeddings of both small pictures by full attention whose values are
    positions, and fits an affine map to the positions found, the surer ones counting more. The
    next round sees the source as that map distorts it, and searches near by. Any number of rounds
    may follow; all but the first share their temperatures.
    """

    def __init__(self, width: int = 32, features: int = 16) -> None:
        super().__init__()
        self.embedding = Embedding(width, features)
        self.log_sharpness = nn.Parameter(torch.tensor([3.8, 2.8]))
        self.log_nearness = nn.Parameter(torch.tensor([1.5, -1.5]))
        self.log_floor = nn.Parameter(torch.tensor(-6.0))

    def forward(
        self, degraded: Float[Tensor, "b 1 l k"], source: Float[Tensor, "b 3 h w"], rounds: int
    ) -> list[Match]:
        batch, _, rows, columns = degraded.shape
        factor = source.shape[2] // rows
        here = positions(identity(batch), (rows, columns))
        target, theta, matches = self.embedding(degraded), identity(batch), []
        for turn in range(rounds):
            nearby = distort(source, theta)
            later = int(turn > 0)  # the first round measures in pictures, later ones in sites
            unit = (rows / 2) ** 2 if later else 1.0
            step, spread, colour = look_up(
                target * self.log_sharpness[later].exp(),
                self.embedding(degrade(nearby, factor)),
                F.avg_pool2d(nearby, factor),
                self.log_nearness[later].exp() * unit,
            )
            fit = affine_fit(here, step, 1 / (spread + self.log_floor.exp()))
            matches.append(Match(transform(theta, step), compose(theta, fit), colour))
            theta = matches[-1].theta.detach()
        return matches


def look_up(
    query: Float[Tensor, "b c l k"],
    key: Float[Tensor, "b c l k"],
    colour: Float[Tensor, "b 3 l k"],
    nearness: Float[Tensor, ""],
) -> tuple[Float[Tensor, "b 2 l k"], Float[Tensor, "b l k"], Float[Tensor, "b 3 l k"]]:
    """Return mean position and colour of the keys that each site attends to, and their variance."""
    shape = tuple(query.shape[2:])
    here = positions(identity(len(query)), shape)
    value = torch.cat([here, here.square().sum(dim=1, keepdim=True), colour], dim=1)
    query, key = near(query, here, key, here, nearness)
    value = F.pad(value, (0, 0, 0, 0, 0, query.shape[1] - value.shape[1]))  # fused kernels want it
    query, key, value = (to_sites(x) for x in (query, key, value))
    found = Full(scale=1.0)(query, key, value, Image(shape, block=1))
    found = rearrange(found, "b 1 (l k) c -> b c l k", l=shape[0])
    position, square, colour = found[:, :2], found[:, 2], found[:, 3:6]
    return position, (square - position.square().sum(dim=1)).clamp(min=0), colour


def to_sites(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 hw c"]:
    """Lay out pixels as sites of one head; copied, as kernels want features side by side."""
    return rearrange(x, "b c h w -> b 1 (h w) c").contiguous()


def near(
    query: Float[Tensor, "b c h w"],
    expected: Float[Tensor, "b 2 h w"],
    key: Float[Tensor, "b c h w"],
    here: Float[Tensor, "b 2 h w"],
    nearness: Float[Tensor, ""],
) -> tuple[Float[Tensor, "b e h w"], Float[Tensor, "b e h w"]]:
    """Make query and key whose product is the features' less nearness |expected - here|^2.

    The square of `expected` is left out: it is the same for all keys, so softmax does not see it.
    """
    ones = torch.ones_like(here[:, :1])
    query = torch.cat([query, 2 * nearness * expected, nearness * ones], dim=1)
    key = torch.cat([key, here, -here.square().sum(dim=1, keepdim=True)], dim=1)
    return query, key


def affine_fit(
    here: Float[Tensor, "b 2 l k"],
    there: Float[Tensor, "b 2 l k"],
    weight: Float[Tensor, "b l k"],
    rounds: int = 3,
) -> Float[Tensor, "b 2 3"]:
    """Fit by weighted least squares; from round to round, sites far from the fit count less."""
    x, y = (rearrange(p, "b xy l k -> b (l k) xy") for p in (here, there))
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=2)
    weight = rearrange(weight / weight.mean(dim=(1, 2), keepdim=True), "b l k -> b (l k) 1")
    trust = weight
    for _ in range(rounds):
        theta = torch.linalg.solve(x.mT @ (trust * x) + 1e-3 * torch.eye(3), x.mT @ (trust * y))
        error = (x @ theta - y).square().sum(dim=2, keepdim=True)
        trust = weight / (1 + error / 0.003)
    return theta.mT


def identity(batch: int) -> Float[Tensor, "batch 2 3"]:
    return torch.eye(2, 3).expand(batch, -1, -1)


def positions(theta: Float[Tensor, "b 2 3"], shape: tuple[int, int]) -> Float[Tensor, "b 2 h w"]:
    """Return where an affine map takes the pixels of a picture of that shape."""
    grid = F.affine_grid(theta, [len(theta), 1, *shape], align_corners=False)
    return rearrange(grid, "b h w xy -> b xy h w")


def transform(
    theta: Float[Tensor, "b 2 3"], points: Float[Tensor, "b 2 l k"]
) -> Float[Tensor, "b 2 l k"]:
    moved = theta[:, :, :2] @ points.flatten(2) + theta[:, :, 2:]
    return moved.view_as(points)


def compose(outer: Float[Tensor, "b 2 3"], inner: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b 2 3"]:
    """Return the map that applies `inner`, then `outer`."""
    linear = outer[:, :, :2] @ inner
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + outer[:, :, 2:]], dim=2)
