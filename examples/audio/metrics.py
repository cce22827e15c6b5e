"""How near a restored recording is to the true one, in the gaps.

Shapes: b recordings, n samples.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.gaps import gaps_in
from examples.audio.spectrum import confidence, known_frames, spectrum


def sdr_db(
    restored: Float[Tensor, "b n"], true: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]
) -> float:
    """Compute the signal-to-distortion ratio, power of truth over power of error, where marked."""
    error = ((restored - true) * where).square().sum()
    return 10 * torch.log10((true * where).square().sum() / error.clamp(min=1e-12)).item()


def sdr_of_gaps_db(
    restored: Float[Tensor, "b n"], true: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]
) -> float:
    """Average the ratios of the gaps, each brought to -10 to 35 dB.

    Left out are gaps where the recording is silent: 40 dB below its power. NaN where all are.
    """
    silence, figures = 1e-4 * true.square().mean(), []
    for start, end in gaps_in(known[0]):
        ours, theirs = restored[:, start:end], true[:, start:end]
        if theirs.square().mean() > silence:
            ratio = sdr_db(ours, theirs, torch.ones_like(theirs, dtype=torch.bool))
            figures.append(min(35.0, max(-10.0, ratio)))
    return sum(figures) / len(figures) if figures else float("nan")


def log_spectral_distance_db(
    restored: Float[Tensor, "b n"],
    true: Float[Tensor, "b n"],
    known: Bool[Tensor, "b n"],
    range_db: float = 60.0,
) -> float:
    """Average the root mean square difference of levels over the frames with gaps.

    Levels more than `range_db` below the loudest of the true recording count as that low.
    """
    levels = [spectrum(wave).abs() for wave in (restored, true)]
    floor = levels[1].max() * 10 ** (-range_db / 20)
    ours, theirs = (20 * level.clamp(min=floor).log10() for level in levels)
    distance = (ours - theirs).square().mean(dim=1).sqrt()
    return distance[~known_frames(confidence(known))].mean().item()
