"""The network: a match at low resolution, one attention at full resolution, a few convolutions.

Shapes: b batch, h w a full-resolution picture, l k the small ones, n sites, d and dv features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.images.copy_photo.data import degrade, grey
from examples.images.copy_photo.matching import Matcher, identity, near, positions, to_sites
from ndgpa import Grid
from ndgpa.operators import Operator


@dataclass(frozen=True)
class Question:
    """What the operator is asked, and what the network will need afterwards."""

    query: Float[Tensor, "b 1 n d"]
    key: Float[Tensor, "b 1 n d"]
    value: Float[Tensor, "b 1 n dv"]
    structure: Grid
    theta: Float[Tensor, "b 2 3"]  # where the match says that the target lies in the source
    expected: Float[Tensor, "b 2 h w"]  # the same for each query, in pixels from the middle
    guess: Float[Tensor, "b 3 l k"]  # the small target in colours copied at low resolution
    embedding: Float[Tensor, "b c l k"]


class CopyNet(nn.Module):
    """Restores tau(M) from its degraded form and the sharp M.

    Queries come from the embedding of the degraded tau(M), keys from the same embedding of M
    degraded likewise; both are enlarged to the size of the attention and completed by positions.
    The operator has no parameters: it is an argument of the call, and so is the space, whose shape
    is the resolution at which the operator attends.

    Args:
        matcher: Trained before; it is not changed.
        value: Channels of the features that are copied beside the pixels. With 13 a value is as
            wide as a query, which is what the fused kernels of full attention want.
        width: Channels of the last convolutions.
    """

    def __init__(self, matcher: Matcher, value: int = 13, width: int = 24) -> None:
        super().__init__()
        self.matcher = matcher.requires_grad_(False)
        self.log_sharpness = nn.Parameter(torch.tensor(0.0))
        self.log_nearness = nn.Parameter(torch.tensor(1.0))
        self.log_caution = nn.Parameter(torch.tensor(1.0))
        self.to_value = nn.Conv2d(3, value, 3, padding=1)
        features = matcher.embedding.out.out_channels
        self.head = nn.Sequential(
            nn.Conv2d(3 + value + 3 + 3 + features + 1, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 5, 3, padding=1),
        )
        with torch.no_grad():
            self.head[-1].weight.zero_()
            self.head[-1].bias.zero_()

    def forward(
        self,
        degraded: Float[Tensor, "b 1 l k"],
        source: Float[Tensor, "b 3 h w"],
        structure: Grid,
        operator: Operator,
    ) -> Float[Tensor, "b 3 h w"]:
        question = self.ask(degraded, source, structure)
        answer = operator(question.query, question.key, question.value, structure)
        return self.finish(question, answer, tuple(source.shape[2:]))

    def ask(
        self, degraded: Float[Tensor, "b 1 l k"], source: Float[Tensor, "b 3 h w"], structure: Grid
    ) -> Question:
        """Make queries, keys and values on the sites of `structure`."""
        with torch.no_grad():
            match = self.matcher(degraded, source, rounds=3)[-1]
            embedding = self.matcher.embedding(degraded)
            small_source = degrade(source, source.shape[2] // degraded.shape[2])
            features = torch.stack([embedding, self.matcher.embedding(small_source)])
        height, width = structure.shape
        pixels = torch.tensor([width / 2, height / 2])[:, None, None]
        here = positions(identity(len(source)), structure.shape) * pixels
        expected = positions(match.theta, structure.shape) * pixels
        features = [enlarge(x, structure.shape, "bilinear") for x in features]
        query, key = near(
            features[0] * self.log_sharpness.exp(),
            expected,
            features[1],
            here,
            self.log_nearness.exp(),
        )
        value = torch.cat([source, self.to_value(source)], dim=1)
        value = F.adaptive_avg_pool2d(value, structure.shape)
        value = torch.cat([value, here, torch.ones_like(here[:, :1])], dim=1)
        query, key, value = (to_sites(x) for x in (query, key, value))
        guess = match.colour + (degraded - grey(match.colour))
        return Question(query, key, value, structure, match.theta, expected, guess, embedding)

    def finish(
        self, question: Question, answer: Float[Tensor, "b 1 n dv"], size: tuple[int, int]
    ) -> Float[Tensor, "b 3 h w"]:
        """Blend what was copied, where that is to be trusted, with the enlarged guess.

        Copies are doubted where the keys found are not those looked for; outside the source
        everything fades.
        """
        answer = rearrange(answer, "b 1 (h w) c -> b c h w", h=question.structure.shape[0])
        copied, found, any_key = answer[:, :-3], answer[:, -3:-1], answer[:, -1:]
        miss = any_key * (found - question.expected)
        distance = miss.square().sum(dim=1, keepdim=True)
        miss = torch.cat([miss, distance], dim=1).clamp(-9, 9)
        copied, miss = enlarge(copied, size, "bicubic"), enlarge(miss, size, "bilinear")
        any_key = enlarge(any_key, size, "bilinear")
        guess = enlarge(question.guess, size, "bicubic")
        embedding = enlarge(question.embedding, size, "bilinear")
        outside = outside_px(question.theta, size).clamp(-9, 9)
        change = self.head(torch.cat([copied, miss, guess, embedding, outside], dim=1))
        caution = self.log_caution.exp()
        trust = any_key * (change[:, 3:4] - caution * (miss[:, 2:] - 1)).sigmoid()
        inside = (change[:, 4:] - caution * outside).sigmoid()
        return inside * (guess + trust * (copied[:, :3] - guess)) + change[:, :3]


def outside_px(theta: Float[Tensor, "b 2 3"], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
    """Return how far outside the source each pixel of the target looks; negative inside."""
    pixels = torch.tensor([size[1] / 2, size[0] / 2])[:, None, None]
    return ((positions(theta, size).abs() - 1) * pixels).amax(dim=1, keepdim=True)


def enlarge(
    x: Float[Tensor, "b c l k"], size: tuple[int, int], mode: str
) -> Float[Tensor, "b c h w"]:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode=mode, align_corners=False)
