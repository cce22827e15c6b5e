"""Where a recording has gaps: as told, or found.

Shapes: b channels, n samples. A gap is (start, end).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, ones

from examples.common.untrusted import BadInput

SHORTEST_S, LONGEST_S = 0.005, 2.0  # of a silence that is taken for a gap
EDGE_S, AROUND_S = 0.003, 0.02  # beside a silence, whose levels tell a cut from a fade
LEAST_OF_AROUND = 0.4  # level at the edge of a cut, as a share of the level around it
LEAST_OF_WHOLE = 0.05  # the same, as a share of the level of the recording
LEAST_STEPS = 4  # the same, in steps of the recording's resolution


@dataclass(frozen=True)
class Silences:
    """Stretches of exact silence, in seconds."""

    gaps: list[tuple[float, float]]  # cut out of a sound
    pauses: list[tuple[float, float]]  # all others of the length of a gap


def gaps_in(known: Bool[Tensor, " n"]) -> list[tuple[int, int]]:
    """Return the runs of unknown samples."""
    edges = F.pad((~known).int(), (1, 1)).diff()
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), ends.tolist()))


def spans(texts: tuple[str, ...], length_s: float) -> list[tuple[float, float]]:
    """Parse gaps in seconds, from texts as "3.2-3.5".

    Raises:
        BadInput: A text is no span, or it lies outside the recording.
    """
    found = []
    for text in texts:
        start, _, end = text.partition("-")
        try:
            span = (float(start), float(end))
        except ValueError:
            raise BadInput(f"--gaps expects START-END in seconds; got {text!r}") from None
        if not 0 <= span[0] < span[1] <= length_s:
            raise BadInput(f"--gaps {text} does not lie within the {length_s:.2f} s recorded")
        found.append(span)
    return found


def silences(wave: Float[Tensor, "b n"], rate: int) -> Silences:
    """Find the stretches of 5 ms to 2 s in which all channels are exactly 0.

    One counts as a gap if the sound is cut off on both sides. Where it fades out or in, or has sunk
    to the resolution of the recording, as before the pauses of speech in 8 bits, it is a pause.
    """
    found = Silences([], [])
    if not wave.any():
        return found
    least = max(LEAST_OF_WHOLE * _level(wave), LEAST_STEPS * float(wave[wave != 0].abs().min()))
    around = round(AROUND_S * rate)
    for start, end in gaps_in((wave != 0).any(dim=0)):
        if SHORTEST_S <= (end - start) / rate <= LONGEST_S:
            sides = (wave[:, max(0, start - around) : start].flip(1), wave[:, end : end + around])
            cut = all(_is_cut(side, rate, least) for side in sides)
            (found.gaps if cut else found.pauses).append((start / rate, end / rate))
    return found


def _is_cut(side: Float[Tensor, "b m"], rate: int, least: float) -> bool:
    """Say whether a sound is as loud at the edge of a silence, which comes first, as around it."""
    if side.shape[1] < round(AROUND_S * rate):
        return False
    edge = _level(side[:, : round(EDGE_S * rate)])
    return edge >= max(least, LEAST_OF_AROUND * _level(side))


def _level(wave: Float[Tensor, "b n"]) -> float:
    return float(wave.square().mean().sqrt())


def known_outside(
    gaps: list[tuple[float, float]], samples: int, rate: int, widened_s: float = 0.0
) -> Bool[Tensor, " n"]:
    """Mark all samples but those in the gaps, which are widened a little on both sides."""
    known = ones(samples, dtype=bool)
    for start, end in gaps:
        low = max(0, round((start - widened_s) * rate))
        known[low : round((end + widened_s) * rate)] = False
    return known
