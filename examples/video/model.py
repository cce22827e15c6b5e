"""The network: a coarse first filling, one attention from holes to the clip, a few convolutions.

Shapes: t frames, h w pixels, l k a picture that is STRIDE times smaller, g i one that is GUESS
times smaller, e heads, n sites of the clip, m sites in holes, d features.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from examples.video.attention import Attention, Spaces
from examples.video.camera import camera_path
from examples.video.guess import fill

STRIDE = 2  # pixels along each side of one of the coarse filling
GUESS = 4  # the same for the guess, which is what there is without attention
ANSWER = 9  # numbers that a head brings to a site
FRAMES_AT_A_TIME = 64  # in the last convolutions, when nothing is learnt


@dataclass(frozen=True)
class Sketch:
    """What is known about a damaged clip before anything is learnt."""

    frames: Float[Tensor, "t 3 h w"]  # 0 in the holes
    known: Bool[Tensor, "t 1 h w"]
    path: Float[Tensor, "t 2"]  # the camera's, (x, y) in pixels
    coarse: Float[Tensor, "t 3 l k"]  # filled in time and from around
    sure: Float[Tensor, "t 2 l k"]  # the share that was known, and whether time had an answer

    @classmethod
    @torch.no_grad()
    def of(cls, frames: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"]) -> "Sketch":
        frames = frames * known
        path = camera_path(frames, known)
        share = F.avg_pool2d(known.float(), STRIDE, ceil_mode=True)
        coarse = F.avg_pool2d(frames, STRIDE, ceil_mode=True) / share.clamp(min=1e-6)
        coarse, found = fill(coarse, share > 0.2, path / STRIDE)
        return cls(frames, known, path, coarse, torch.cat([share, found.float()], dim=1))


@dataclass(frozen=True)
class Filling:
    """What the network made of a clip."""

    frames: Float[Tensor, "t 3 h w"]  # what is known is as it was
    copied: Float[Tensor, "e m 3"]  # what each head brought to the sites in holes
    found: Float[Tensor, "e m"]  # whether it found any key
    guess: Float[Tensor, "t 3 g i"]


class Embedding(nn.Module):
    """Features of the surroundings of each place of the coarse clip, and a better guess."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, width, 3, padding=1)
        self.space = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=reach, dilation=reach) for reach in (1, 2, 4)
        )
        self.time = nn.ModuleList(
            nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)) for _ in self.space
        )
        self.out = nn.Conv2d(width, features + 3, 1)

    def forward(self, sketch: Sketch) -> tuple[Float[Tensor, "t d l k"], Float[Tensor, "t 3 g i"]]:
        mean = F.avg_pool2d(sketch.coarse, 7, 1, 3, count_include_pad=False)
        contrast = 4 * (sketch.coarse - mean)
        x = torch.cat([2 * sketch.coarse - 1, contrast, sketch.sure], dim=1)
        x = F.leaky_relu(self.stem(x), 0.2)
        for space, time in zip(self.space, self.time):
            x = x + F.leaky_relu(space(x), 0.2)
            along = rearrange(x, "t c l k -> c t l k")
            x = x + F.leaky_relu(rearrange(time(along), "c t l k -> t c l k"), 0.2)
        x = self.out(x)
        guess = F.avg_pool2d(sketch.coarse + 0.1 * x[:, :3], GUESS // STRIDE, ceil_mode=True)
        return F.normalize(x[:, 3:], dim=1), guess


class FillNet(nn.Module):
    """Fills a clip by copying.

    Every site has an address: features of its surroundings in the coarse filling, its place in the
    scene, its time. A site in a hole reads the sites with the nearest addresses. Queries and keys
    are addresses alike, so a right selection does not have to be learnt from nothing. What counts
    as near each head learns: the first begins with the place, the second with the features, for
    what moves by itself.

    Args:
        width: Channels of the convolutions.
        features: In an address, beside place and time.
    """

    def __init__(self, width: int = 24, features: int = 13) -> None:
        super().__init__()
        self.embedding = Embedding(width, features)
        self.log_sharpness = nn.Parameter(torch.tensor([1.3, 1.8]))
        self.log_nearness = nn.Parameter(torch.tensor([1.1, -0.5]))  # per pixel
        self.log_recency = nn.Parameter(torch.tensor([-2.0, -2.0]))  # per frame
        self.log_caution = nn.Parameter(torch.tensor(-2.0))
        heads = len(self.log_nearness)
        self.head = nn.Sequential(
            nn.Conv2d(ANSWER * heads + 7, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 3 + heads, 3, padding=1),
        )
        with torch.no_grad():
            self.head[-1].weight.zero_()
            self.head[-1].bias.zero_()

    def forward(self, sketch: Sketch, attention: Attention) -> Filling:
        spaces = Spaces.of(sketch.known)
        features, guess = self.embedding(sketch)
        key, value = self.address(sketch, features), content(sketch)
        value = value.expand(-1, key.shape[1], -1, -1)
        query = key[:, :, spaces.sites]
        seen = sketch.known.flatten()[None]
        answer = attention(spaces)(query, key, value, spaces.holes, spaces.clip, key_mask=seen)
        answer = judged(answer, value[:, :, spaces.sites, 3:6])[0]
        frames = self.finish(sketch, spaces, rearrange(answer, "e m c -> m (e c)"), guess)
        return Filling(frames, answer[..., :3], answer[..., 3], guess)

    def address(
        self, sketch: Sketch, features: Float[Tensor, "t d l k"]
    ) -> Float[Tensor, "1 e n d"]:
        """Return the address of each pixel, the same for every head but for the scales."""
        size = sketch.frames.shape[2:]
        where = places(sketch)
        where = where - where.mean(dim=(0, 2, 3), keepdim=True)
        plain = to_sites(torch.cat([enlarge(features, size, STRIDE), where], dim=1))
        sharp, near, recent = self.log_sharpness, self.log_nearness, self.log_recency
        scale = torch.stack([*[sharp] * features.shape[1], near, near, recent], dim=1).exp()
        return plain * scale[:, None]

    def finish(
        self,
        sketch: Sketch,
        spaces: Spaces,
        answer: Float[Tensor, "m ec"],
        guess: Float[Tensor, "t 3 g i"],
    ) -> Float[Tensor, "t 3 h w"]:
        """Finish some frames at a time, to save memory; they do not see each other here."""
        count, _, height, width = sketch.frames.shape
        step = count if torch.is_grad_enabled() else FRAMES_AT_A_TIME
        size, filled = height * width, []
        edges = torch.searchsorted(spaces.sites, torch.arange(0, count + step, step) * size)
        for begin, (low, high) in zip(range(0, count, step), pairwise(edges)):
            some = slice(begin, begin + step)
            known = sketch.known[some]
            canvas = answer.new_zeros(known.numel(), answer.shape[1])
            canvas = canvas.index_put((spaces.sites[low:high] - begin * size,), answer[low:high])
            canvas = rearrange(canvas, "(t h w) c -> t c h w", h=height, w=width)
            filled.append(self.blend(sketch.frames[some], known, canvas, guess[some]))
        return torch.cat(filled)

    def blend(
        self,
        frames: Float[Tensor, "t 3 h w"],
        known: Bool[Tensor, "t 1 h w"],
        answer: Float[Tensor, "t ec h w"],
        guess: Float[Tensor, "t 3 g i"],
    ) -> Float[Tensor, "t 3 h w"]:
        """Average the guess and what each head brought; what is known stays."""
        guess = enlarge(guess, frames.shape[2:], GUESS)
        change = self.head(torch.cat([answer, guess, frames, known.float()], dim=1))
        answer = rearrange(answer, "t (e c) h w -> e t c h w", c=ANSWER)
        trust = rearrange(change[:, 3:], "t e h w -> e t 1 h w") + 2
        trust = trust - self.log_caution.exp() * answer[:, :, 7:8]
        trust = trust + (answer[:, :, 3:4] + 1e-6).log()  # none where no key was found
        share = torch.cat([torch.zeros_like(trust[:1]), trust]).softmax(dim=0)
        filled = (share * torch.cat([guess[None], answer[:, :, :3]])).sum(dim=0) + change[:, :3]
        return torch.where(known, frames, filled)


def content(sketch: Sketch) -> Float[Tensor, "1 1 n 8"]:
    """Return what is copied: colour, where and when it is from, its square, and a one."""
    square = sketch.frames.square().mean(dim=1, keepdim=True)
    return to_sites(
        torch.cat([sketch.frames, places(sketch), square, torch.ones_like(square)], dim=1)
    )


def judged(
    answer: Float[Tensor, "1 e m 8"], place: Float[Tensor, "1 e m 3"]
) -> Float[Tensor, "1 e m 9"]:
    """Return the answer's colour, whether it was found, how far off it is from and how unsure."""
    colour, found = answer[..., :3], answer[..., 7:]
    off = (answer[..., 3:6] - found * place) * torch.tensor([1.0, 1.0, 0.1])
    distance = off[..., :2].square().sum(dim=-1, keepdim=True)
    spread = answer[..., 6:7] - colour.square().mean(dim=-1, keepdim=True)
    unsure = (spread.clamp(min=0) + 1e-4).sqrt()
    return torch.cat([colour, found, off.clamp(-9, 9), distance.clamp(max=9), unsure], dim=-1)


def places(sketch: Sketch) -> Float[Tensor, "t 3 h w"]:
    """Return where each pixel stands in the scene, (x, y), and its frame."""
    count, _, height, width = sketch.frames.shape
    x = torch.arange(width) + sketch.path[:, 0, None, None]
    y = torch.arange(height)[:, None] + sketch.path[:, 1, None, None]
    time = torch.arange(float(count))[:, None, None]
    return torch.stack(torch.broadcast_tensors(x, y, time), dim=1)


def enlarge(
    x: Float[Tensor, "t c l k"], size: tuple[int, ...], factor: int
) -> Float[Tensor, "t c h w"]:
    """Enlarge around pixel centres; what sticks out where the sizes do not divide is cut off."""
    height, width = size
    larger = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return larger[:, :, :height, :width]


def to_sites(x: Float[Tensor, "t c h w"]) -> Float[Tensor, "1 1 n c"]:
    """Lay out a clip as sites of one head, copied, as attention wants features side by side."""
    return rearrange(x, "t c h w -> 1 1 (t h w) c").contiguous()
