"""How good a picture is, and how long a call takes."""

import time
from collections.abc import Callable
from typing import TypeVar

from einops import rearrange
from jaxtyping import Float
from skimage.metrics import structural_similarity
from torch import Tensor

T = TypeVar("T")


def psnr(image: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB; values from 0 to 1."""
    return float(-10 * (image - truth).square().mean().log10())


def ssim(image: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"]) -> float:
    """Structural similarity with the Gaussian window of Wang et al. 2004, mean of the channels."""
    return float(
        structural_similarity(
            *(rearrange(x, "c h w -> h w c").numpy() for x in (image, truth)),
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result and the seconds that it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
