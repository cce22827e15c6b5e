"""How good a filling is, in the holes only.

Shapes: t frames, h w pixels; values from 0 to 1.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from skimage.metrics import structural_similarity
from torch import Tensor


def scores(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    known: Bool[Tensor, "t 1 h w"],
) -> dict[str, float]:
    """PSNR in dB, SSIM, and the error of the changes from frame to frame in parts of 255."""
    return {
        "psnr_db": psnr(filled, truth, ~known),
        "ssim": ssim(filled, truth, ~known),
        "flicker": flicker(filled, truth, ~known),
    }


def psnr(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    holes: Bool[Tensor, "t 1 h w"],
) -> float:
    error = (filled - truth).square().mean(dim=1, keepdim=True)
    return float(-10 * error[holes].mean().log10())


def ssim(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    holes: Bool[Tensor, "t 1 h w"],
) -> float:
    """Structural similarity of Wang et al. 2004 at the pixels in holes, frame by frame."""
    total, count = 0.0, 0
    for image, target, hole in zip(filled, truth, holes[:, 0].numpy()):
        if hole.any():
            likeness = _likeness(image, target)[hole]
            total, count = total + float(likeness.sum()), count + likeness.size
    return total / (3 * count) * 3 if count else float("nan")


def _likeness(image: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> np.ndarray:
    _, likeness = structural_similarity(
        *(rearrange(x, "c h w -> h w c").numpy() for x in (image, target)),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return likeness.mean(axis=2)


def flicker(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    holes: Bool[Tensor, "t 1 h w"],
) -> float:
    """Mean absolute error of the differences of successive frames, where either has a hole."""
    error = (filled - truth).diff(dim=0).abs().mean(dim=1, keepdim=True)
    return 255 * float(error[holes[1:] | holes[:-1]].mean())


def mean_psnr(frames: Float[Tensor, "t 3 h w"], truth: Float[Tensor, "t 3 h w"]) -> float:
    """Over every pixel, in dB."""
    return float(-10 * torch.log10((frames - truth).square().mean()))
