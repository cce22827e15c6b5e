"""Where a recording has gaps: as told, or found.

Shapes: b channels, n samples. A gap is (start, end).
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, ones

SHORTEST_S, LONGEST_S = 0.005, 2.0  # of a silence that is taken for a gap


def gaps_in(known: Bool[Tensor, " n"]) -> list[tuple[int, int]]:
    """The runs of unknown samples."""
    edges = F.pad((~known).int(), (1, 1)).diff()
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), ends.tolist()))


def spans(texts: tuple[str, ...], length_s: float) -> list[tuple[float, float]]:
    """Gaps in seconds, from texts as "3.2-3.5".

    Raises:
        ValueError: A text is no span, or it lies outside the recording.
    """
    found = []
    for text in texts:
        start, _, end = text.partition("-")
        try:
            span = (float(start), float(end))
        except ValueError:
            raise ValueError(f"--gaps expects START-END in seconds; got {text!r}") from None
        if not 0 <= span[0] < span[1] <= length_s:
            raise ValueError(f"--gaps {text} does not lie within the {length_s:.2f} s recorded")
        found.append(span)
    return found


def silences(wave: Float[Tensor, "b n"], rate: int) -> list[tuple[float, float]]:
    """Gaps in seconds: all channels are exactly 0 for 5 ms to 2 s, and sound on both sides.

    A pause, into which the sound dies away, is none.
    """
    runs = gaps_in((wave != 0).any(dim=0))
    heard = 0.05 * wave.square().mean().sqrt()
    near = max(1, rate // 1000)  # samples that tell whether there is sound at an edge
    found = []
    for start, end in runs:
        edges = (wave[:, max(0, start - near) : start], wave[:, end : end + near])
        abrupt = all(edge.numel() > 0 and edge.abs().max() > heard for edge in edges)
        if abrupt and SHORTEST_S <= (end - start) / rate <= LONGEST_S:
            found.append((start / rate, end / rate))
    return found


def known_outside(
    gaps: list[tuple[float, float]], samples: int, rate: int, widened_s: float = 0.0
) -> Bool[Tensor, " n"]:
    """True but in the gaps, which are made a little wider on both sides."""
    known = ones(samples, dtype=bool)
    for start, end in gaps:
        low = max(0, round((start - widened_s) * rate))
        known[low : round((end + widened_s) * rate)] = False
    return known
