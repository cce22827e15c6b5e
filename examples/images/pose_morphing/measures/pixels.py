"""Errors pixel by pixel, of whole pictures or of some of their pixels.

Pictures are in 0 to 1; every measure returns one number for each picture of the batch.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def l1(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Mean absolute error, NaN where `where` has no pixel."""
    return mean_over((images - truths).abs().mean(dim=1), where)


def psnr(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, of the pixels `where` alone if given."""
    return -10 * mean_over((images - truths).square().mean(dim=1), where).log10()


def mean_over(
    x: Float[Tensor, "b h w"], where: Bool[Tensor, "b h w"] | None
) -> Float[Tensor, " b"]:
    """The mean of each map over its chosen pixels, NaN where there are none."""
    weight = torch.ones_like(x) if where is None else where.to(x.dtype)
    x, weight = (rearrange(y, "b h w -> b (h w)") for y in (x, weight))
    return (x * weight).sum(dim=1) / weight.sum(dim=1)
