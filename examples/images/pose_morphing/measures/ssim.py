"""Structural similarity, as the papers on pose transfer compute it.

Shapes: b pictures, h w pixels. Pictures are in 0 to 1. Everything runs in float64.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from examples.images.pose_morphing.measures.pixels import mean_over

SIGMA = 1.5
RADIUS = 5  # of the Gaussian window: 3.5 sigma
SMALLEST = 2 * RADIUS + 1
PROTOCOLS = ("plain", "patn")


def ssim(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    protocol: str = "plain",
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """One number for each picture.

    Source: Wang et al. 2004, with the options of the script of PATN (Zhu et al. 2019).

    Args:
        images: What was made; the PATN protocol takes the data range from it.
        truths: What should have been made.
        protocol: "plain" has the data range 1. "patn" first pads both pictures to squares with
            white columns left and right, and has as data range that of the padded `images`, each
            on its own: published figures are padded so, which raises them.
        where: Only the map at these pixels counts; without it all but the border of 5 pixels.

    Raises:
        ValueError: An unknown protocol, or pictures smaller than the window.
    """
    if protocol not in PROTOCOLS:
        wanted = ", ".join(map(repr, PROTOCOLS))
        raise ValueError(f"unknown SSIM protocol {protocol!r}; expected one of {wanted}")
    data_range = images.new_ones(len(images))
    if protocol == "patn":
        images, truths = squared(images), squared(truths)
        where = None if where is None else squared(where.double()[:, None], 0.0)[:, 0] > 0
        data_range = images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))
    values = ssim_map(images, truths, data_range)
    if where is None:
        values = values[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    return mean_over(values, where)


def ssim_map(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    data_range: Float[Tensor, " b"],
) -> Float[Tensor, "b h w"]:
    """The similarity around each pixel, the mean of the channels.

    Population covariance under a Gaussian window; pictures go on beyond their border mirrored,
    border pixels twice.
    """
    if min(images.shape[2:]) < SMALLEST:
        h, w = images.shape[2:]
        raise ValueError(f"SSIM needs sides of {SMALLEST} pixels or more, got {h}x{w}")
    x, y, r = images.double(), truths.double(), data_range.double()[:, None, None, None]
    c1, c2 = (0.01 * r) ** 2, (0.03 * r) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (above / below).mean(dim=1)


def blur(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """A Gaussian window along rows, then along columns."""
    weight = torch.arange(-RADIUS, RADIUS + 1, dtype=x.dtype, device=x.device)
    weight = torch.exp(-(weight**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    for dim in (2, 3):
        windows = mirrored(x, dim).unfold(dim, 2 * RADIUS + 1, 1)
        x = windows @ weight
    return x


def mirrored(x: Tensor, dim: int) -> Tensor:
    """Continued by RADIUS on both sides of an axis, border elements twice."""
    before = x.narrow(dim, 0, RADIUS).flip(dim)
    after = x.narrow(dim, x.shape[dim] - RADIUS, RADIUS).flip(dim)
    return torch.cat([before, x, after], dim=dim)


def squared(x: Float[Tensor, "b c h w"], value: float = 1.0) -> Float[Tensor, "b c h side"]:
    """Columns of `value` left and right until the picture is square; 40 each for 256x176.

    A picture that is square or wide stays as it is.
    """
    missing = max(0, x.shape[2] - x.shape[3])
    return F.pad(x, (missing // 2, missing - missing // 2), value=value)
