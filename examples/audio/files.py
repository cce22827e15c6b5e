"""Sound files in and out, and from one rate to another.

Shapes: b channels, n and m samples.
"""

import io
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from scipy.signal import resample_poly
from torch import Tensor

from examples.audio.spectrum import RATE
from examples.common.files import replacing

SHORTEST_S = 0.25
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


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


def mono(path: Path) -> Float[Tensor, " n"]:
    """A file as one channel at 16 kHz."""
    wave, rate = read_recording(path)
    return at_rate(wave.mean(dim=0, keepdim=True), rate, RATE)[0]


def format_of(path: Path) -> tuple[str, str]:
    """How to write a file of that name: soundfile's format and subtype.

    Raises:
        ValueError: Its ending is none of those that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} must end in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def write_recording(path: Path, wave: Float[Tensor, "b n"], rate: int) -> None:
    """The whole file or none: it is encoded in memory, written beside, and renamed.

    Samples beyond -1 to 1 are cut off.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    kind, subtype = format_of(path)
    encoded = io.BytesIO()
    samples = wave.clamp(-1, 1).T.numpy()
    soundfile.write(encoded, samples, rate, format=kind, subtype=subtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(encoded.getvalue())


def at_rate(wave: Float[Tensor, "b n"], rate: int, to_rate: int) -> Float[Tensor, "b m"]:
    """By a polyphase filter."""
    if rate == to_rate:
        return wave
    shared = math.gcd(rate, to_rate)
    out = resample_poly(wave.numpy(), to_rate // shared, rate // shared, axis=-1)
    return torch.from_numpy(out.astype(np.float32))
