"""How good a filling is, in the holes only.

Shapes: t frames, h w pixels; values from 0 to 1.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from examples.common.measures import psnr, ssim_map


def scores(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    known: Bool[Tensor, "t 1 h w"],
) -> dict[str, float]:
    """Return PSNR in dB, SSIM, and the error of the changes between frames in parts of 255."""
    return {
        "psnr_db": psnr(filled, truth, ~known),
        "ssim": ssim(filled, truth, ~known),
        "flicker": flicker(filled, truth, ~known),
    }


def ssim(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    holes: Bool[Tensor, "t 1 h w"],
) -> float:
    """Average the structural similarity at the pixels in holes, frame by frame."""
    total, count = 0.0, 0
    for image, target, hole in zip(filled, truth, holes[:, 0].numpy()):
        if hole.any():
            likeness = ssim_map(image, target)[hole]
            total, count = total + float(likeness.sum()), count + likeness.size
    return total / count if count else float("nan")


def flicker(
    filled: Float[Tensor, "t 3 h w"],
    truth: Float[Tensor, "t 3 h w"],
    holes: Bool[Tensor, "t 1 h w"],
) -> float:
    """Average the error of the differences of successive frames, where either has a hole."""
    error = (filled - truth).diff(dim=0).abs().mean(dim=1, keepdim=True)
    return 255 * float(error[holes[1:] | holes[:-1]].mean())
