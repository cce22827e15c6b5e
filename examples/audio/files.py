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
from examples.common import untrusted
from examples.common.files import replacing
from examples.common.untrusted import BadInput

SHORTEST_S = 0.25
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


def read_recording(path: Path) -> tuple[Float[Tensor, "b n"], int]:
    """Read a file of any kind that soundfile reads, at its own rate; also return that, in hertz.

    Raises:
        BadInput: The file is missing, damaged, no recording, too short or beyond the limits of
            `untrusted.read_recording`.
    """
    wave, rate = untrusted.read_recording(path)
    if len(wave) < SHORTEST_S * rate:
        raise BadInput(f"{path} lasts {len(wave) / rate:.3f} s; {SHORTEST_S} s are needed")
    return torch.from_numpy(wave.T.copy()), rate


def mono(path: Path) -> Float[Tensor, " n"]:
    """Read a file as one channel at 16 kHz."""
    wave, rate = read_recording(path)
    return at_rate(wave.mean(dim=0, keepdim=True), rate, RATE)[0]


def format_of(path: Path) -> tuple[str, str]:
    """Return soundfile's format and subtype for a file of that name.

    Raises:
        BadInput: Its ending is none of those that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"{path} must end in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def check_writable(path: Path, channels: int, rate: int) -> None:
    """Refuse, before any work, a recording that the format of `path` cannot hold."""
    encoded(path, torch.zeros(channels, 100), rate)


def encoded(path: Path, wave: Float[Tensor, "b n"], rate: int) -> bytes:
    """Encode as the name says; samples beyond -1 to 1 are clipped."""
    kind, subtype = format_of(path)
    file = io.BytesIO()
    try:
        soundfile.write(file, wave.clamp(-1, 1).T.numpy(), rate, format=kind, subtype=subtype)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{path.suffix} cannot hold {len(wave)} channels at {rate} Hz: {error}"
        ) from error
    return file.getvalue()


def write_recording(path: Path, wave: Float[Tensor, "b n"], rate: int) -> None:
    """Write the whole file or none: it is encoded in memory, written beside, and renamed.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    data = encoded(path, wave, rate)
    with replacing(path) as part:
        part.write_bytes(data)


def at_rate(wave: Float[Tensor, "b n"], rate: int, to_rate: int) -> Float[Tensor, "b m"]:
    """Resample by a polyphase filter."""
    if rate == to_rate:
        return wave
    shared = math.gcd(rate, to_rate)
    out = resample_poly(wave.numpy(), to_rate // shared, rate // shared, axis=-1)
    return torch.from_numpy(out.astype(np.float32))
