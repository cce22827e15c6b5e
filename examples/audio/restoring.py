"""A whole recording through the network, and back to samples.

Shapes: b channels, n samples, t frames, c bands, f bins.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.align import Copy, find_copy, likeliest_lags
from examples.audio.candidates import strongest_keys
from examples.audio.gaps import gaps_in
from examples.audio.model import Question, Repair, Restorer
from examples.audio.operators import space
from examples.audio.spectrum import (
    FLOOR,
    HOP,
    RATE,
    WINDOW,
    log_bands,
    spectrum,
    to_bins,
    waveform,
)
from ndgpa.operators import Operator

KEYS = 3  # asked of each head for each frame of a gap
ROUNDS = 10  # in which phases come to agree with their neighbours
AROUND = 8 * HOP  # samples on both sides of a gap that are looked at


@dataclass(frozen=True)
class Restored:
    """The recording, and where its gaps were copied from."""

    wave: Float[Tensor, "b n"]
    copies: list[list[Copy | None]]  # of each channel, of each gap
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

    Args:
        clean: Take noise and clipping away, too.
    """
    repair = net(wave, known, operator)
    base = cleaned(wave, repair.bands) if clean else wave
    out, copies = base.clone(), []
    for channel in range(len(wave)):
        gaps = gaps_in(known[channel])
        lags = places(of_channel(repair.question, channel), operator, gaps, net.causal)
        copies.append(
            [
                find_copy(base[channel], known[channel], gap, some, net.causal)
                for gap, some in zip(gaps, lags)
            ]
        )
        for gap, copy in zip(gaps, copies[-1]):
            fill(out[channel], gap, copy, repair.bands[channel], net.causal)
    return Restored(out, copies, repair)


def of_channel(question: Question, channel: int) -> Question:
    part = slice(channel, channel + 1)
    return Question(
        question.query[part], question.key[part], question.value[part], question.known[part]
    )


def places(
    question: Question, operator: Operator, gaps: list[tuple[int, int]], causal: bool
) -> list[list[int]]:
    """For each gap the lags, in frames, that the attention proposes, the likeliest first.

    Causal, the first three frames of a gap are asked, else all.
    """
    total = question.known.shape[1]
    frames = [
        torch.arange(start // HOP + 1, max(start // HOP + 2, end // HOP)) for start, end in gaps
    ]
    frames = [x[: 3 if causal else None].clamp(max=total - 1) for x in frames]
    if not frames:
        return []
    sizes = [len(x) for x in frames]
    keys, weights = strongest_keys(question, operator, space(total), torch.cat(frames), KEYS)
    split = zip(frames, keys.split(sizes, dim=1), weights.split(sizes, dim=1))
    return [likeliest_lags(*of_gap) for of_gap in split]


def fill(
    out: Float[Tensor, " n"],
    gap: tuple[int, int],
    copy: Copy | None,
    bands: Float[Tensor, "c t"],
    causal: bool,
) -> None:
    """Write into the gap: the copy, its spectrum moved to the one wanted as far as it is unsure.

    Phases are the copy's (of noise where there is none). Unless causal, they are brought to agree
    with those beside the gap. Source: Griffin and Lim 1984, "Signal estimation from modified
    short-time Fourier transform".
    """
    start, end = gap
    low = max(0, start - AROUND) // HOP * HOP
    high = min(len(out), end + AROUND)
    piece, inside = out[low:high].clone(), slice(start - low, end - low)
    piece[inside] = noise(start, end) if copy is None else copy.wave
    touched = torch.arange(start // HOP - 1, end // HOP + 3)
    touched = touched[(touched * HOP > start - WINDOW // 2) & (touched * HOP < end + WINDOW // 2)]
    touched = touched[(touched >= 0) & (touched < bands.shape[1])]
    wanted = to_bins(bands[None, :, touched])
    first = spectrum(piece[None])[:, :, touched - low // HOP].abs()
    sure = 0.0 if copy is None else max(0.0, copy.likeness) ** 2
    size = ((1 - sure) * wanted + sure * (first + FLOOR).log()).exp() - FLOOR
    for _ in range(1 if causal else ROUNDS):
        whole = spectrum(piece[None])
        part = whole[:, :, touched - low // HOP]
        whole[:, :, touched - low // HOP] = torch.polar(size.clamp(min=0), part.angle())
        piece[inside] = waveform(whole, len(piece))[0, inside]
    out[start:end] = piece[inside]


def noise(start: int, end: int) -> Float[Tensor, " m"]:
    """The same at every call; a longer gap begins as a shorter one."""
    seconds = -(-(end - start) // RATE)
    generator = torch.Generator().manual_seed(start)
    return 0.01 * torch.randn(seconds * RATE, generator=generator)[: end - start]


def cleaned(wave: Float[Tensor, "b n"], bands: Float[Tensor, "b c t"]) -> Float[Tensor, "b n"]:
    """Every band brought to the level wanted, up by at most 9 dB and down by 26."""
    whole = spectrum(wave)
    change = to_bins((bands - log_bands(whole)).clamp(-3, 1))
    return waveform(whole * change.exp(), wave.shape[1])
