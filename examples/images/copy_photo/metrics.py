"""How good a picture is, and what an attention costs."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from einops import rearrange
from jaxtyping import Float
from skimage.metrics import structural_similarity
from torch import Tensor

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs to the terminal

from torch.profiler import ProfilerActivity, profile

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


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that tensors made during the call took at a time, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    events = record.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
