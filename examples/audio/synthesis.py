"""Program-made sounds: plucked strings, drums, tones; and a band that plays them in bars.

A sound is (samples,) float32 at 16 kHz.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from examples.audio.spectrum import RATE


def pluck(pitch_hz: float, length_s: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Pluck a string: a burst of noise goes round and loses its treble.

    Source: Karplus and Strong 1983, "Digital synthesis of plucked-string and drum timbres".
    """
    period = max(2, round(RATE / pitch_hz))
    turn = torch.rand(period, generator=generator) * 2 - 1
    turns = []
    for _ in range(math.ceil(length_s * RATE / period)):
        turns.append(turn)
        turn = 0.498 * (turn + turn.roll(1))
    return torch.cat(turns)[: round(length_s * RATE)]


def tone(pitch_hz: float, length_s: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Add harmonics of random strengths and phases that die away."""
    t = torch.arange(round(length_s * RATE)) / RATE
    count = max(1, min(12, int(0.45 * RATE / pitch_hz)))
    number = torch.arange(1, count + 1)[:, None]
    strength, phase = torch.rand(2, count, 1, generator=generator)
    waves = (2 * math.pi * (number * pitch_hz * t + phase)).sin()
    return (waves * strength / number * (-t * (2 + number)).exp()).sum(dim=0)


def drum(length_s: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Hit a drum, between a thud that falls in pitch and a hiss."""
    t = torch.arange(round(length_s * RATE)) / RATE
    hiss, pitch, decay = torch.rand(3, generator=generator).tolist()
    fall = 2 * math.pi * ((40 + 80 * pitch) * t + 3 * (1 - (-30 * t).exp()))
    noise = torch.randn(len(t), generator=generator).diff(prepend=torch.zeros(1))
    return (-t * (8 + 30 * decay)).exp() * ((1 - hiss) * fall.sin() + 0.5 * hiss * noise)


def sound(generator: torch.Generator) -> Float[Tensor, " n"]:
    """Draw any one of them, from the lowest string of a guitar to three octaves above it."""
    kind, pitch, length = torch.rand(3, generator=generator).tolist()
    pitch_hz, length_s = 82.4 * 2 ** (math.floor(36 * pitch) / 12), 0.1 + 0.5 * length
    if kind < 0.4:
        wave = pluck(pitch_hz, length_s, generator)
    elif kind < 0.7:
        wave = tone(pitch_hz, length_s, generator)
    else:
        wave = drum(length_s, generator)
    fade = min(80, len(wave))
    wave[-fade:] *= torch.linspace(1, 0, fade)
    return wave


def band(samples: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Play bars that recur in an order as in songs, each time with one thing changed."""
    bar_s, order = torch.rand(2, generator=generator).tolist()
    length = round(RATE * (1 + 2 * bar_s))
    instruments = [sound(generator) for _ in range(10)]
    bars = [write_bar(length, instruments, generator) for _ in range(3)]
    song = [0, 1, 0, 2] if order < 0.5 else [0, 0, 1, 2, 1]
    wave = torch.zeros(samples)
    for number, start in enumerate(range(0, samples, length)):
        mix(wave, bars[song[number % len(song)]], start)
        mix(wave, instruments[number % 10] * 0.5, start + length // 3)
    return wave


def write_bar(
    length: int, instruments: list[Float[Tensor, " _"]], generator: torch.Generator
) -> Float[Tensor, " n"]:
    """Write sixteenths, about half of them played."""
    bar = torch.zeros(length + RATE)  # the last sounds ring on
    for sixteenth in range(16):
        play, which, gain = torch.rand(3, generator=generator).tolist()
        if play < 0.6:
            sound = instruments[int(which * len(instruments))] * (0.4 + gain)
            mix(bar, sound, sixteenth * length // 16)
    return bar


def mix(wave: Float[Tensor, " n"], sound: Float[Tensor, " m"], start: int) -> None:
    """Add a sound from `start` on, as far as it fits."""
    part = wave[start : start + len(sound)]
    part += sound[: len(part)]
