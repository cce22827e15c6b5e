"""From frames to samples: where exactly the sound of a gap is heard elsewhere.

The attention says to about a frame which places sound alike. Around each place the samples beside
the gap are slid along the recording, and the best fit tells the lag to a part of a sample.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.audio.spectrum import HOP, RATE, delayed

CONTEXT = RATE // 10  # samples before and after a gap that are compared
SEARCH = 2 * HOP  # samples around a lag of whole frames
LONGEST = RATE // 2  # what a gap may last when its end is not known yet
MARGIN = 64  # samples around a source that is delayed by a part of a sample
PLACES = 6  # tried for each gap


@dataclass(frozen=True)
class Copy:
    """What a gap is filled with."""

    start: int  # of the gap, in samples
    end: int
    lag: float  # samples from the source to the gap; negative where the source comes later
    likeness: float  # correlation of what is beside the gap with what is beside the source
    wave: Float[Tensor, " m"]


def likeliest_lags(
    frames: Int[Tensor, " s"], keys: Int[Tensor, "h s k"], weights: Float[Tensor, "h s k"]
) -> list[int]:
    """The lags, in frames, that most frames agree on; none within 2 frames of a better one."""
    lags, weights = (frames[:, None] - keys)[keys >= 0], weights[keys >= 0]
    if len(lags) == 0:
        return []
    lowest = int(lags.min()) - 2
    votes = torch.zeros(int(lags.max()) - lowest + 3).index_add_(0, lags - lowest, weights)
    votes[1:-1] += 0.5 * (votes[:-2] + votes[2:])  # neighbours support each other
    chosen: list[int] = []
    while len(chosen) < PLACES and votes.max() > 0:
        best = int(votes.argmax())
        chosen.append(best + lowest)
        votes[max(0, best - 2) : best + 3] = 0
    return chosen


def find_copy(
    wave: Float[Tensor, " n"],
    known: Bool[Tensor, " n"],
    gap: tuple[int, int],
    lags: list[int],
    causal: bool,
) -> Copy | None:
    """The best fit among places, given as lags in frames; None where no place is whole.

    Causal, only what precedes the gap is compared, and a source ends before the gap begins,
    however long that lasts, up to half a second.
    """
    copies = [_fit(wave, known, gap, lag * HOP, causal) for lag in lags]
    return max((copy for copy in copies if copy), key=lambda copy: copy.likeness, default=None)


def _fit(wave: Tensor, known: Tensor, gap: tuple[int, int], lag: int, causal: bool) -> Copy | None:
    start, end = gap
    reach = SEARCH + MARGIN
    if causal:
        end, lag = start + LONGEST, max(lag, LONGEST + reach)
    first, last = start - lag - reach, end - lag + reach
    if first < 0 or last > len(wave) or not bool(known[first:last].all()):
        return None
    sides = (
        [(start - CONTEXT, start)] if causal else [(start - CONTEXT, start), (end, end + CONTEXT)]
    )
    sums = [_slide(wave, known, max(0, low), min(high, len(wave)), lag) for low, high in sides]
    product, own, other = (sum(parts) for parts in zip(*sums))
    scale = (own * other).clamp(min=1e-9).sqrt()
    best = int((product / scale).argmax())
    part, top = _between(product, best)
    gain = min(4.0, max(0.25, top / max(1e-9, float(other[best]))))
    shift = best - SEARCH + part
    source = _cut(wave, start - lag + shift, gap[1] - start)
    return Copy(start, gap[1], lag - shift, min(1.0, top / float(scale[best])), gain * source)


def _slide(
    wave: Tensor, known: Tensor, low: int, high: int, lag: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Products and powers of samples [low, high) and those `lag` before, at every shift."""
    own = _sharpened(wave, known, low, high)
    other = _sharpened(wave, known, low - lag - SEARCH, high - lag + SEARCH)
    shifted = other.unfold(0, len(own), 1)
    heard = (own != 0).float()
    return shifted @ own, own.square().sum(), shifted.square() @ heard


def _sharpened(wave: Tensor, known: Tensor, low: int, high: int) -> Tensor:
    """The treble raised, so that a fit is exact; 0 where the recording is not known."""
    whole = F.pad(wave[max(0, low) : max(0, high)], (max(0, -low), max(0, high - len(wave))))
    seen = F.pad(known[max(0, low) : max(0, high)], (max(0, -low), max(0, high - len(wave))))
    whole = whole[: high - low] - 0.9 * F.pad(whole[: high - low - 1], (1, 0))
    return whole * seen[: high - low]


def _between(product: Tensor, best: int, reach: int = 16) -> tuple[float, float]:
    """Where between samples the products are largest, to a twentieth, and how large they are.

    By a windowed sinc; at the ends of the search, the sample itself.
    """
    if not reach <= best < len(product) - reach:
        return 0.0, float(product[best])
    offset = torch.arange(-reach, reach + 1)
    part = torch.linspace(-0.5, 0.5, 21)
    taper = 0.5 + 0.5 * (torch.pi * offset / (reach + 1)).cos()
    values = torch.sinc(part[:, None] - offset) @ (taper * product[best + offset])
    top = int(values.argmax())
    return float(part[top]), float(values[top])


def _cut(wave: Tensor, at: float, length: int) -> Tensor:
    """Samples from a place between samples on."""
    whole = round(at)
    piece = wave[whole - MARGIN : whole + length + MARGIN]
    return delayed(piece, whole - at)[MARGIN : MARGIN + length]
