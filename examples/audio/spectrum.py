"""Spectrograms: frames of 32 ms every 8 ms, and bands that the network works in.

Shapes: b recordings, n samples, t frames, f bins of the spectrum, c bands.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor

RATE = 16_000  # Hz
WINDOW = 512  # samples of a frame
HOP = 128  # samples from frame to frame
FLOOR = 1e-3  # added to magnitudes before the logarithm; a sine of amplitude 1 has 128
LOUDNESS = 0.05  # root mean square of recordings to train on
SINGLE, GROUP = 64, 4  # bins below 2 kHz are bands of their own, the others by fours
BANDS = SINGLE + (WINDOW // 2 - SINGLE) // GROUP


def spectrum(wave: Float[Tensor, "b n"]) -> Complex[Tensor, "b f t"]:
    """Transform frames, of which frame t is centred on sample HOP t; silence before and after."""
    window = torch.hann_window(WINDOW)
    return torch.stft(
        wave, WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )


def waveform(spectrum: Complex[Tensor, "b f t"], samples: int) -> Float[Tensor, "b n"]:
    """Invert `spectrum`; for one that belongs to no waveform, return the nearest one."""
    window = torch.hann_window(WINDOW)
    return torch.istft(spectrum, WINDOW, HOP, window=window, center=True, length=samples)


def log_bands(spectrum: Complex[Tensor, "b f t"]) -> Float[Tensor, "b c t"]:
    """Return the natural logarithm of the root mean power of each band."""
    power = spectrum[:, :-1].abs().square()
    low, high = power[:, :SINGLE], power[:, SINGLE:].unflatten(1, (-1, GROUP)).mean(dim=2)
    return (torch.cat([low, high], dim=1).sqrt() + FLOOR).log()


def to_bins(bands: Float[Tensor, "b c t"]) -> Float[Tensor, "b f t"]:
    """Give every bin the value of its band, and the topmost that of its neighbour."""
    high = bands[:, SINGLE:].repeat_interleave(GROUP, dim=1)
    return torch.cat([bands[:, :SINGLE], high, high[:, -1:]], dim=1)


def confidence(known: Bool[Tensor, "b n"]) -> Float[Tensor, "b t"]:
    """Return the share of each frame, weighted by the window, that lies on known samples."""
    window = torch.hann_window(WINDOW).square()
    x = F.pad(known.float()[:, None], (WINDOW // 2, WINDOW // 2))
    return F.conv1d(x, (window / window.sum())[None, None], stride=HOP)[:, 0]


def known_frames(share: Float[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Mark the frames that can be copied from."""
    return share > 0.98


def delayed(wave: Float[Tensor, " n"], by: float, reach: int = 32) -> Float[Tensor, " n"]:
    """Delay by a part of a sample, by a windowed sinc of so many samples on both sides."""
    offset = torch.arange(-reach, reach + 1)
    taper = 0.5 + 0.5 * (math.pi * (offset + by) / (reach + 1)).cos()
    taps = torch.sinc(offset + by) * taper  # the filter is applied as a correlation
    return F.conv1d(wave[None, None], taps[None, None], padding=reach)[0, 0]
