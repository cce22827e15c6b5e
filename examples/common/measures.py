"""How near a picture is to the truth; values from 0 to 1.

Shapes: c channels, h w pixels.
"""

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float
from skimage.metrics import structural_similarity
from torch import Tensor


def psnr(
    images: Float[Tensor, "*batch c h w"],
    truth: Float[Tensor, "*batch c h w"],
    where: Bool[Tensor, "*batch 1 h w"] | None = None,
) -> float:
    """Compute the peak signal-to-noise ratio in dB over all pixels, or those in `where`."""
    error = (images - truth).square()
    if where is not None:
        error = error.mean(dim=-3, keepdim=True)[where]
    return float(-10 * error.mean().log10())


def ssim(image: Float[Tensor, "c h w"], truth: Float[Tensor, "c h w"]) -> float:
    """Compute the mean structural similarity; the border of 5 pixels is left out."""
    return float(_structural_similarity(image, truth)[0])


def ssim_map(
    image: Float[Tensor, "c h w"], truth: Float[Tensor, "c h w"], data_range: float = 1.0
) -> Float[np.ndarray, "h w"]:
    """Compute the structural similarity around each pixel, mean of the channels."""
    return _structural_similarity(image, truth, data_range)[1].mean(axis=2)


def _structural_similarity(
    image: Tensor, truth: Tensor, data_range: float = 1.0
) -> tuple[float, np.ndarray]:
    """Follow Wang et al. 2004: a Gaussian window of deviation 1.5, population covariance."""
    return structural_similarity(
        *(rearrange(x, "c h w -> h w c").numpy() for x in (image, truth)),
        channel_axis=2,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
