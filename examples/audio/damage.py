"""Damage that is put in: gaps, clipping and noise.

Shapes: b recordings, n samples.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.spectrum import RATE


@dataclass(frozen=True)
class Damage:
    """What is put in.

    Args:
        gap_s: Shortest and longest gap; lengths are drawn evenly on a logarithmic scale.
        missing: Share of the recording that the gaps take.
        clip: Samples beyond this share of the peak are cut off; 1 for none.
        noise_db: White noise so far below the recording's power; None for none.
    """

    gap_s: tuple[float, float] = (0.02, 0.5)
    missing: float = 0.12
    clip: float = 1.0
    noise_db: float | None = None


@dataclass(frozen=True)
class Damaged:
    """A recording before and after. Only `wave` and `known` may be looked at to restore it."""

    true: Float[Tensor, "b n"]
    wave: Float[Tensor, "b n"]  # 0 in the gaps
    known: Bool[Tensor, "b n"]  # False in the gaps


def put_damage(true: Float[Tensor, "b n"], damage: Damage, generator: torch.Generator) -> Damaged:
    """Clip, add noise, then cut gaps; the same gaps in all recordings of the batch."""
    peak = true.abs().amax(dim=1, keepdim=True) * damage.clip
    wave = true.clamp(-peak, peak)
    if damage.noise_db is not None:
        power = true.square().mean(dim=1, keepdim=True).sqrt()
        noise = torch.randn(true.shape, generator=generator)
        wave = wave + power * 10 ** (-damage.noise_db / 20) * noise
    known = torch.ones(true.shape[1], dtype=torch.bool)
    for start, end in draw_gaps(true.shape[1], damage, generator):
        known[start:end] = False
    known = known.expand(true.shape)
    return Damaged(true, wave * known, known)


def draw_gaps(samples: int, damage: Damage, generator: torch.Generator) -> list[tuple[int, int]]:
    """Draw starts and ends, in order, none at the borders; at least one."""
    shortest, longest = damage.gap_s
    gaps, at = [], 0
    mean = (longest - shortest) / torch.tensor(longest / shortest).log().item()
    pause = mean * (1 / damage.missing - 1)
    while True:
        length, before = torch.rand(2, generator=generator).tolist()
        length = round(RATE * shortest * (longest / shortest) ** length)
        start = at + round(RATE * pause * (0.5 + before))
        if start + length > samples - RATE // 10:
            break
        gaps.append((start, start + length))
        at = start + length
    if not gaps:
        length = min(round(RATE * shortest), samples // 4)
        gaps.append((samples // 2, samples // 2 + length))
    return gaps
