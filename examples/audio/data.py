"""What is trained on: sounds that recur, put together from recordings and from a program.

A step's excerpt follows from torch's state alone, which the training loop sets for each step.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from examples.audio.damage import Damage, Damaged, put_damage
from examples.audio.files import at_rate, mono
from examples.audio.recordings import (
    levelled,
    music_to_train_on,
    speech_to_train_on,
)
from examples.audio.spectrum import RATE
from examples.audio.synthesis import band, mix, sound

Recordings = list[Float[Tensor, " _"]]


def recordings_to_train_on(more: list[Float[Tensor, " _"]]) -> Recordings:
    """Collect speech, the first half of the film music, and recordings of one's own."""
    return speech_to_train_on() + music_to_train_on() + more


def own_recordings(paths: list[Path]) -> Recordings:
    return [levelled(mono(path)) for path in paths]


def excerpt(recordings: Recordings, samples: int, generator: torch.Generator) -> Damaged:
    """Draw one damaged excerpt; half of them have noise, half have clipping."""
    kind, clip, noise, gain, missing = torch.rand(5, generator=generator).tolist()
    wave = band(samples, generator) if kind < 0.25 else collage(recordings, samples, generator)
    wave = levelled(wave) * 10 ** ((20 * gain - 10) / 20)
    damage = Damage(
        missing=0.1 + 0.1 * missing,
        clip=1.0 if clip < 0.5 else 0.3 + clip / 2,
        noise_db=None if noise < 0.5 else 60 * noise - 15,
    )
    return put_damage(wave[None], damage, generator)


def collage(recordings: Recordings, samples: int, generator: torch.Generator) -> Tensor:
    """Repeat a few cuttings in a random order over a quiet background.

    Each time a cutting is a little louder or softer, and now and then faster or slower.
    """
    count, busy, loud = torch.rand(3, generator=generator).tolist()
    cuttings = [cutting(recordings, generator) for _ in range(3 + int(4 * count))]
    wave, at = torch.zeros(samples), 0
    while at < samples:
        which, gain, speed, pause = torch.rand(4, generator=generator).tolist()
        piece = cuttings[int(which * len(cuttings))] * 10 ** ((6 * gain - 3) / 20)
        if speed < 0.2:
            piece = at_rate(piece[None], 100, 96 + int(speed * 40))[0]
        mix(wave, piece, at)
        at += round(len(piece) * (0.7 + 0.3 * busy) + RATE * 0.3 * pause)
    return levelled(wave) + 0.1 * loud * background(recordings, samples, generator)


def cutting(recordings: Recordings, generator: torch.Generator) -> Tensor:
    """Cut 0.3 to 1.5 s out of a recording, or make a sound or two, with soft ends."""
    which, length, at = torch.rand(3, generator=generator).tolist()
    if which < 0.25:
        piece = torch.cat([sound(generator), sound(generator)])
    else:
        recording = recordings[int((which - 0.25) / 0.75 * len(recordings))]
        size = min(round(RATE * (0.3 + 1.2 * length)), len(recording))
        start = int(at * (len(recording) - size + 1))
        piece = recording[start : start + size].clone()
    fade = torch.linspace(0, 1, 80)
    piece[:80] *= fade
    piece[-80:] *= fade.flip(0)
    return levelled(piece)


def background(recordings: Recordings, samples: int, generator: torch.Generator) -> Tensor:
    """Loop another recording from a random place on."""
    which, start = torch.rand(2, generator=generator).tolist()
    recording = recordings[int(which * len(recordings))]
    recording = recording.roll(int(start * len(recording)))
    return recording.repeat(samples // len(recording) + 1)[:samples]
