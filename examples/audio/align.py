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
SEARCH = 3 * HOP  # samples around a lag of whole frames
LONGEST = RATE // 2  # what a gap may last when its end is not known yet
MARGIN = 32  # samples around a source that is delayed by a part of a sample
REACH = SEARCH + MARGIN
PLACES = 16  # tried for each gap


@dataclass(frozen=True)
class Copy:
    """What a gap can be filled with."""

    start: int  # of the gap, in samples
    end: int
    lag: float  # samples from the source to the gap; negative where the source comes later
    likeness: float  # correlation of what is beside the gap with what is beside the source
    wave: Float[Tensor, " m"]
    whole: Bool[Tensor, " m"]  # False where the source is not known either


def likeliest_lags(
    frames: Int[Tensor, " s"],
    keys: Int[Tensor, "h s k"],
    weights: Float[Tensor, "h s k"],
    shortest: int,
    causal: bool,
) -> list[int]:
    """Find the lags, in frames, that most frames agree on, none within 3 frames of a better one.

    Args:
        shortest: Sources nearer than this are left out; each frame has one vote for the others.
    """
    lags = frames[:, None] - keys
    apart = lags >= shortest if causal else lags.abs() >= shortest
    weights = torch.where(apart & (keys >= 0), weights, 0)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    lags, weights = lags[weights > 0], weights[weights > 0]
    if len(lags) == 0:
        return []
    lowest = int(lags.min()) - 2
    votes = torch.zeros(int(lags.max()) - lowest + 3).index_add_(0, lags - lowest, weights)
    votes[1:-1] += 0.5 * (votes[:-2] + votes[2:])  # neighbours support each other
    chosen: list[int] = []
    while len(chosen) < PLACES and votes.max() > 0:
        best = int(votes.argmax())
        chosen.append(best + lowest)
        votes[max(0, best - 3) : best + 4] = 0
    return chosen


def shortest_lag(gap: tuple[int, int], causal: bool) -> int:
    """Return the least lag, in frames, at which a source, however slid, lies outside its gap."""
    length = LONGEST if causal else gap[1] - gap[0]
    return -(-(length + REACH) // HOP)


def find_copies(
    wave: Float[Tensor, " n"],
    known: Bool[Tensor, " n"],
    gap: tuple[int, int],
    lags: list[int],
    causal: bool,
) -> list[Copy]:
    """Cut out what lies at each of the lags, which are in frames; the best fit comes first.

    Causal, only what precedes the gap is compared, and places are judged without regard to how long
    the gap lasts.
    """
    copies = [_fit(wave, known, gap, lag * HOP, causal) for lag in lags]
    return sorted((copy for copy in copies if copy), key=lambda copy: -copy.likeness)


def _fit(wave: Tensor, known: Tensor, gap: tuple[int, int], lag: int, causal: bool) -> Copy | None:
    start, end = gap
    if start - lag < REACH or end - lag > len(wave) - REACH:
        return None
    sides = [(max(0, start - CONTEXT), start)]
    sides += [] if causal else [(end, min(end + CONTEXT, len(wave)))]
    sums = [_slide(wave, known, low, high, lag) for low, high in sides if low < high]
    if not sums:
        return None
    product, own, other = (sum(parts) for parts in zip(*sums))
    scale = (own * other).clamp(min=1e-9).sqrt()
    best = int((product / scale).argmax())
    part, top = _between(product, best)
    gain = min(4.0, max(0.25, top / max(1e-9, float(other[best]))))
    shift = best - SEARCH + part
    source = _cut(wave, start - lag + shift, end - start)
    first = round(start - lag + shift)
    whole = known[first : first + end - start]
    likeness = min(1.0, top / float(scale[best]))
    return Copy(start, end, lag - shift, likeness, gain * source, whole)


def _slide(
    wave: Tensor, known: Tensor, low: int, high: int, lag: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare samples [low, high) with those `lag` before: products and powers at every shift."""
    own = _sharpened(wave, known, low, high)
    other = _sharpened(wave, known, low - lag - SEARCH, high - lag + SEARCH)
    power = _correlation(other.square(), (own != 0).float()).clamp(min=0)
    return _correlation(other, own), own.square().sum(), power


def _correlation(long: Tensor, short: Tensor) -> Tensor:
    """Sum the products at every place of the short one within the long one."""
    spectrum = torch.fft.rfft(long) * torch.fft.rfft(short, len(long)).conj()
    return torch.fft.irfft(spectrum, len(long))[: len(long) - len(short) + 1]


def _sharpened(wave: Tensor, known: Tensor, low: int, high: int) -> Tensor:
    """Raise the treble, so that a fit is exact; 0 where the recording is not known."""
    whole = F.pad(wave[max(0, low) : max(0, high)], (max(0, -low), max(0, high - len(wave))))
    seen = F.pad(known[max(0, low) : max(0, high)], (max(0, -low), max(0, high - len(wave))))
    whole = whole[: high - low] - 0.9 * F.pad(whole[: high - low - 1], (1, 0))
    return whole * seen[: high - low]


def _between(product: Tensor, best: int, reach: int = 16) -> tuple[float, float]:
    """Find to a twentieth of a sample where the products are largest, and how large they are.

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
    """Cut out samples from a place between samples on."""
    whole = round(at)
    piece = wave[whole - MARGIN : whole + length + MARGIN]
    return delayed(piece, whole - at)[MARGIN : MARGIN + length]
