"""A first filling without learning: in time along the camera's path, then from what is around.

Shapes: t frames, c channels, h w pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """The nearest frame in one direction of time that shows the same place of the scene.

    Args:
        pixels: What it shows there.
        lag: Frames to it; 0 where no frame shows it.
    """

    pixels: Float[Tensor, "t c h w"]
    lag: Float[Tensor, "t 1 h w"]


def fill(
    frames: Float[Tensor, "t c h w"],
    known: Bool[Tensor, "t 1 h w"],
    path: Float[Tensor, "t 2"],
) -> tuple[Float[Tensor, "t c h w"], Bool[Tensor, "t 1 h w"]]:
    """Fill holes by linear interpolation along the path, and the rest from what is around.

    With a path of zeros it is linear interpolation in time.

    Returns:
        The frames, and where time had something to offer or nothing was needed.
    """
    between, found = in_time(frames, known, path)
    return from_around(torch.where(known, frames, between), known | found), known | found


def in_time(
    frames: Float[Tensor, "t c h w"],
    known: Bool[Tensor, "t 1 h w"],
    path: Float[Tensor, "t 2"],
) -> tuple[Float[Tensor, "t c h w"], Bool[Tensor, "t 1 h w"]]:
    """Interpolate each hole between the nearest frames before and after that know its place."""
    before = _look(frames, known, path, -1)
    after = _look(frames, known, path, 1)
    one, other = (x.lag > 0 for x in (before, after))
    share = before.lag / (before.lag + after.lag).clamp(min=1)  # of the later frame
    share = torch.where(one & other, share, other.float())
    return before.pixels + share * (after.pixels - before.pixels), one | other


def _look(
    frames: Float[Tensor, "t c h w"],
    known: Bool[Tensor, "t 1 h w"],
    path: Float[Tensor, "t 2"],
    direction: int,
) -> Seen:
    """Look one frame further at a time, all frames at once, until nothing is left to ask."""
    count = len(frames)
    pixels, lag = torch.zeros_like(frames), torch.zeros(known.shape)
    wanted = ~known
    table = torch.cat([frames * known, known.float()], dim=1)
    for step in range(1, count):
        here = torch.arange(count - step)
        there = here + step
        if direction < 0:
            here, there = there, here
        here = here[wanted[here].flatten(1).any(dim=1)]
        there = here + direction * step
        if len(here) == 0:
            break
        seen = shifted(table[there], path[here] - path[there])
        good = wanted[here] & (seen[:, -1:] > 0.99)
        pixels[here] = torch.where(good, seen[:, :-1], pixels[here])
        lag[here] = torch.where(good, float(step), lag[here])
        wanted[here] &= ~good
        step_left = wanted.flatten(1).any(dim=1)
        if not bool(step_left.any()):
            break
    return Seen(pixels, lag)


def shifted(
    frames: Float[Tensor, "t c h w"], shift: Float[Tensor, "t 2"]
) -> Float[Tensor, "t c h w"]:
    """Move the pixel at (x, y) + shift to (x, y); 0 comes in from outside."""
    height, width = frames.shape[2:]
    x = torch.arange(width) + 0.5 + shift[:, 0, None, None]
    y = torch.arange(height)[:, None] + 0.5 + shift[:, 1, None, None]
    x, y = 2 * x / width - 1, 2 * y / height - 1
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    return F.grid_sample(frames, grid, align_corners=False)


def from_around(
    frames: Float[Tensor, "t c h w"], known: Bool[Tensor, "t 1 h w"]
) -> Float[Tensor, "t c h w"]:
    """Fill holes from ever smaller pictures, in which what is known spreads; a lost frame is 0."""
    sums, weight = [frames * known], [known.float()]
    while max(sums[-1].shape[2:]) > 1:
        sums.append(F.avg_pool2d(sums[-1], 2, ceil_mode=True))
        weight.append(F.avg_pool2d(weight[-1], 2, ceil_mode=True))
    filled = sums[-1] / weight[-1].clamp(min=1e-6)
    for total, share in zip(reversed(sums[:-1]), reversed(weight[:-1])):
        larger = F.interpolate(filled, total.shape[2:], mode="bilinear", align_corners=False)
        filled = torch.where(share > 0, total / share.clamp(min=1e-6), larger)
    return torch.where(known, frames, filled)
