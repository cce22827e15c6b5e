"""A whole recording through the network, and back to samples.

Shapes: b channels, n samples, t frames, c bands, f bins.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.audio.align import Copy, find_copies, likeliest_lags, shortest_lag
from examples.audio.candidates import strongest_keys
from examples.audio.gaps import gaps_in
from examples.audio.model import Question, Repair, Restorer
from examples.audio.operators import space
from examples.audio.spectrum import (
    FLOOR,
    HOP,
    LOUDNESS,
    RATE,
    WINDOW,
    log_bands,
    spectrum,
    to_bins,
    waveform,
)
from ndgpa.operators import Operator

KEYS = 48  # of each head that are asked for each frame
BESIDE = 16  # frames beside a gap that are asked, too
ROUNDS = 10  # in which phases come to agree with their neighbours
AROUND = 8 * HOP  # samples on both sides of a gap that are looked at


@dataclass(frozen=True)
class Restored:
    """The recording, and where its gaps were copied from."""

    wave: Float[Tensor, "b n"]
    copies: list[list[list[Copy]]]  # of each channel, of each gap, the best first
    repair: Repair


@torch.no_grad()
def restore(
    net: Restorer,
    operator: Operator,
    wave: Float[Tensor, "b n"],
    known: Bool[Tensor, "b n"],
    clean: bool = False,
) -> Restored:
    """Fill the gaps; the known samples stay as they are unless they are to be cleaned.

    Unless causal, the recording is brought to the loudness that the network knows, and back.

    Args:
        clean: Take noise and clipping away, too.
    """
    factor = 1.0 if net.causal else to_usual_loudness(wave, known)
    given, wave = wave, wave * factor
    repair = net(wave, known, operator)
    base = cleaned(wave, repair.bands) if clean else wave
    out, copies = base.clone(), []
    for channel in range(len(wave)):
        gaps = gaps_in(known[channel])
        lags = places(of_channel(repair.question, channel), operator, gaps, net.causal)
        copies.append(
            [
                find_copies(base[channel], known[channel], gap, some, net.causal)
                for gap, some in zip(gaps, lags)
            ]
        )
        for gap, some in zip(gaps, copies[-1]):
            fill(out[channel], gap, some, repair.bands[channel], net.causal)
    out = out / factor
    return Restored(out if clean else torch.where(known, given, out), copies, repair)


def to_usual_loudness(wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]) -> float:
    """Return the factor that brings the known samples to the loudness of training."""
    loudness = (wave * known).square().sum().div(known.sum().clamp(min=1)).sqrt().item()
    return LOUDNESS / loudness if loudness > 1e-6 else 1.0


def of_channel(question: Question, channel: int) -> Question:
    part = slice(channel, channel + 1)
    return Question(
        question.query[part], question.key[part], question.value[part], question.known[part]
    )


def places(
    question: Question, operator: Operator, gaps: list[tuple[int, int]], causal: bool
) -> list[list[int]]:
    """List for each gap the lags, in frames, that the attention proposes, the likeliest first.

    The frames of the gap and those beside it are asked; causal, none that sees more than a window
    beyond its beginning.
    """
    total = question.known.shape[1]
    frames = [frames_about(gap, total, causal) for gap in gaps]
    if not frames:
        return []
    sizes = [len(x) for x in frames]
    keys, weights = strongest_keys(question, operator, space(total), torch.cat(frames), KEYS)
    split = zip(frames, keys.split(sizes, dim=1), weights.split(sizes, dim=1), gaps)
    return [likeliest_lags(*asked, shortest_lag(gap, causal), causal) for *asked, gap in split]


def frames_about(gap: tuple[int, int], total: int, causal: bool) -> Int[Tensor, " s"]:
    first, last = gap[0] // HOP - BESIDE, gap[1] // HOP + BESIDE
    last = gap[0] // HOP + 2 if causal else last
    return torch.arange(max(0, first), min(last, total))


def fill(
    out: Float[Tensor, " n"],
    gap: tuple[int, int],
    copies: list[Copy],
    bands: Float[Tensor, "c t"],
    causal: bool,
) -> None:
    """Write copies into the gap, their spectrum moved to the one wanted where they are unsure.

    Phases are theirs (of noise where there is none). Unless causal, they are brought to agree
    with those beside the gap. Source: Griffin and Lim 1984, "Signal estimation from modified
    short-time Fourier transform".
    """
    start, end = gap
    low = max(0, start - AROUND) // HOP * HOP
    high = min(len(out), end + AROUND)
    piece, inside = out[low:high].clone(), slice(start - low, end - low)
    piece[inside], likeness = joined(copies, gap)
    touched = torch.arange(start // HOP - 1, end // HOP + 3)
    touched = touched[(touched * HOP > start - WINDOW // 2) & (touched * HOP < end + WINDOW // 2)]
    touched = touched[(touched >= 0) & (touched < bands.shape[1])]
    wanted = to_bins(bands[None, :, touched])
    first = spectrum(piece[None])[:, :, touched - low // HOP].abs()
    sure = likeness[(touched * HOP - start).clamp(0, end - start - 1)].clamp(min=0) ** 2
    size = ((1 - sure) * wanted + sure * (first + FLOOR).log()).exp() - FLOOR
    for _ in range(1 if causal else ROUNDS):
        whole = spectrum(piece[None])
        part = whole[:, :, touched - low // HOP]
        whole[:, :, touched - low // HOP] = torch.polar(size.clamp(min=0), part.angle())
        piece[inside] = waveform(whole, len(piece))[0, inside]
    out[start:end] = piece[inside]


def joined(
    copies: list[Copy], gap: tuple[int, int]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Take the best copy, fill its own gaps from the next best, and the rest with noise.

    Returns:
        The sound, and how like its source each sample is.
    """
    wave, empty = noise(*gap), torch.ones(gap[1] - gap[0], dtype=torch.bool)
    likeness = torch.zeros(gap[1] - gap[0])
    for copy in copies:
        here = empty & copy.whole
        wave = torch.where(here, copy.wave, wave)
        likeness[here] = copy.likeness
        empty = empty & ~here
    return wave, likeness


def noise(start: int, end: int) -> Float[Tensor, " m"]:
    """Make noise that is the same at every call; a longer gap begins as a shorter one."""
    seconds = -(-(end - start) // RATE)
    generator = torch.Generator().manual_seed(start)
    return 0.01 * torch.randn(seconds * RATE, generator=generator)[: end - start]


def cleaned(wave: Float[Tensor, "b n"], bands: Float[Tensor, "b c t"]) -> Float[Tensor, "b n"]:
    """Bring every band to the level wanted, up by at most 9 dB and down by 26."""
    whole = spectrum(wave)
    change = to_bins((bands - log_bands(whole)).clamp(-3, 1))
    return waveform(whole * change.exp(), wave.shape[1])
