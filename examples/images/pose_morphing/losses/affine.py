"""tau: one random affine map for a picture, its pose maps and its key points."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

STRENGTH = 0.15  # of Section 3.1 of the paper
STRONGEST = 0.5  # from here on a map may be singular


def random_affine(
    batch: int, strength: float = STRENGTH, generator: torch.Generator | None = None
) -> Float[Tensor, "batch 2 3"]:
    """The identity plus uniform noise of at most `strength` on all six entries.

    In coordinates that run from -1 to 1 over the picture, so noise on the last column moves it by
    up to `strength` times half its side. Made on the device of the generator.

    Source: Section 3.1 of Jetchev et al. 2021, which leaves open whether the shift is noisy too.

    Raises:
        ValueError: `strength` is not from 0 to below 0.5, where every map can be undone.
    """
    if not 0 <= strength < STRONGEST:
        raise ValueError(f"strength must be from 0 to below {STRONGEST}, got {strength}")
    device = None if generator is None else generator.device
    noise = 2 * torch.rand(batch, 2, 3, generator=generator, device=device) - 1
    return torch.eye(2, 3, device=device) + strength * noise


def warp(
    images: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"], padding: str = "border"
) -> Float[Tensor, "b c h w"]:
    """The pixel at x becomes that of the image at theta x, bilinearly.

    Args:
        images: Pictures or pose maps, floating.
        theta: From `random_affine`.
        padding: What is outside the image: "border", the nearest pixel of it; "zeros", right for
            pose maps, where a key point at the very edge would be drawn out; or "reflection".
    """
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def warp_points(
    points: Float[Tensor, "b k 3"], theta: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b k 3"]:
    """Where `warp` moves key points.

    Args:
        points: x and y in pixels, the centre of the first pixel at 0, 0; and 1 when present, else
            0.
        theta: From `random_affine`.
        size: Height and width in pixels.

    Returns:
        The points; -1, -1, 0 for those that were not there or that have left the frame.
    """
    h, w = size
    sides = points.new_tensor([w, h])
    place = (2 * points[..., :2] + 1) / sides - 1
    linear, shift = theta.to(points.dtype).split([2, 1], dim=2)
    moved = torch.linalg.solve(linear, place.mT - shift).mT
    moved = ((moved + 1) * sides - 1) / 2
    inside = ((moved >= -0.5) & (moved < sides - 0.5)).all(dim=-1, keepdim=True)
    kept = inside & (points[..., 2:] > 0)
    return torch.where(kept, torch.cat([moved, points[..., 2:]], dim=-1), missing(points))


def missing(points: Float[Tensor, "b k 3"]) -> Float[Tensor, "3"]:
    """A key point that is not there."""
    return points.new_tensor([-1, -1, 0])
