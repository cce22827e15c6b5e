"""Reading files that may be damaged, hostile or simply of the wrong kind.

Every reader either returns what was asked for or raises `BadInput` with one sentence that names the
file. What a file claims is checked against a limit before memory is allocated for it.
"""

import json
import math
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

JSON_BYTES = 2**26
JSON_DEPTH = 32
HEADER_BYTES = 2**22  # of a safetensors file
TENSOR_BYTES = 2**32
ARRAY_BYTES = 2**32  # of all arrays of an npz file together
ARRAYS = 1000
PIXELS = 50_000_000
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS, which is a program
CHANNELS = 32
RATES = (2_000, 384_000)  # hertz
SECONDS = 3600.0  # of all channels of a recording together
SAMPLES = 2**28  # the same

Kind = type | tuple[type, ...]


class BadInput(ValueError):
    """An input that cannot be used; the text is one sentence for the user."""


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence: on hostile bytes it may be anything."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{path} cannot be read as {kind}: {sentence(error)}") from error


def sentence(error: BaseException) -> str:
    """Put the text of an error on one line of at most 200 characters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_file(path: Path, most_bytes: int) -> None:
    """Refuse what is missing, is no regular file or is too large."""
    with decoding(path, "a file"):
        if path.is_dir():
            raise BadInput(f"{path} is a folder, not a file")
        if not path.is_file():
            raise BadInput(f"{path} is not a file")
        size = path.stat().st_size
    if size > most_bytes:
        raise BadInput(f"{path} has {size} bytes; at most {most_bytes} are read")


def inside(folder: Path, name: object) -> Path:
    """Join the name of a file in a data set to its folder, which it must not lead out of.

    A link inside the folder may point elsewhere: whoever put it there may read both places.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadInput(f"{name!r} is not a file name")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise BadInput(f"the file name {name!r} leads out of {folder}")
    return folder / name


# JSON


def read_json(path: Path, kind: Kind = dict, most_bytes: int = JSON_BYTES) -> Any:
    """Parse a JSON file whose outermost value must be of one kind, a list or an object.

    Refused: more than `most_bytes`, nesting deeper than 32, numbers that are not finite.
    """
    check_file(path, most_bytes)
    with decoding(path, "JSON"):
        value = json.loads(path.read_bytes())
    _check_depth(path, value)
    return of_kind(value, kind, str(path))


def of_kind(value: Any, kind: Kind, name: str) -> Any:
    """Return the value if it is of that kind; True and False are not numbers."""
    if not _is(value, kind):
        raise BadInput(f"{name} must be {_words(kind)}, got {_word(type(value))}")
    return value


def fields(value: Any, kinds: Mapping[str, Kind], name: str) -> dict[str, Any]:
    """Return a JSON object if it has at least these fields, each of its kind."""
    of_kind(value, dict, name)
    missing = [field for field in kinds if field not in value]
    if missing:
        raise BadInput(f"{name} lacks the field {missing[0]!r}")
    for field, kind in kinds.items():
        of_kind(value[field], kind, f"the field {field!r} of {name}")
    return value


def number(value: Any, name: str, least: float, most: float) -> Any:
    """Return an int or float from a file if it is finite and within its bounds."""
    of_kind(value, (int, float), name)
    if not least <= value <= most:
        raise BadInput(f"{name} must lie between {least} and {most}, got {value}")
    return value


def _check_depth(path: Path, value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [child for outer in level for child in _children(path, outer)]
        if not level:
            return
    raise BadInput(f"{path} is nested deeper than {JSON_DEPTH}")


def _children(path: Path, value: Any) -> Iterable[Any]:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{path} holds a number that is not finite")
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is(value: Any, kind: Kind) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


WORDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _word(kind: type) -> str:
    return WORDS.get(kind, kind.__name__)


def _words(kind: Kind) -> str:
    return " or ".join(map(_word, kind if isinstance(kind, tuple) else (kind,)))


# Tensors and arrays


def read_tensors(path: Path, most_bytes: int = TENSOR_BYTES) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, whose numbers must be finite."""
    with _safetensors(path, most_bytes) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, x in tensors.items():
            if x.is_floating_point() and not bool(x.float().isfinite().all()):
                raise BadInput(f"{path} holds numbers that are not finite ({name})")
    return tensors


def read_metadata(path: Path, most_bytes: int = TENSOR_BYTES) -> dict[str, str]:
    """Read the texts in the header of a safetensors file."""
    with _safetensors(path, most_bytes) as file:
        return dict(file.metadata() or {})


def load_module(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors that must have the names and shapes of the module's own."""
    shapes = {name: x.shape for name, x in module.state_dict().items()}
    if {name: x.shape for name, x in tensors.items()} != shapes:
        raise BadInput(f"{path} does not hold a network of this program")
    module.load_state_dict(dict(tensors))


@contextmanager
def _safetensors(path: Path, most_bytes: int) -> Iterator[Any]:
    check_file(path, most_bytes)
    with decoding(path, "safetensors"):
        _check_header(path)
        with safe_open(path, "pt") as file:
            yield file


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise BadInput(f"{path} is too short to be a safetensors file")
    length, size = struct.unpack("<Q", start)[0], path.stat().st_size
    if length > min(HEADER_BYTES, size - 8):
        raise BadInput(
            f"{path} cannot be read as safetensors: its header claims {length} bytes; "
            f"the file has {size}, and at most {HEADER_BYTES} are read"
        )


def read_arrays(
    path: Path, names: Iterable[str], most_bytes: int = ARRAY_BYTES
) -> dict[str, np.ndarray]:
    """Read these arrays of an npz file; never a pickle, nor more bytes than the limit in all."""
    check_file(path, most_bytes)
    with decoding(path, "npz"), zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        total = sum(entry.file_size for entry in entries.values())
        if len(entries) > ARRAYS or total > most_bytes:
            raise BadInput(
                f"{path} unpacks to {len(entries)} arrays of {total} bytes; "
                f"at most {ARRAYS} of {most_bytes} are read"
            )
        arrays = {}
        for name in names:
            if f"{name}.npy" not in entries:
                raise BadInput(f"{path} lacks the array {name!r}")
            entry = entries[f"{name}.npy"]
            with archive.open(entry) as file:
                arrays[name] = _array(file, entry.file_size, f"{path}, array {name!r},")
            _check_finite(arrays[name], f"{path}, array {name!r},")
    return arrays


def read_array(path: Path, most_bytes: int = ARRAY_BYTES) -> np.ndarray:
    """Read the array of an npy file."""
    check_file(path, most_bytes)
    with decoding(path, "npy"), path.open("rb") as file:
        array = _array(file, path.stat().st_size, str(path))
    _check_finite(array, str(path))
    return array


def _array(file: Any, size: int, name: str) -> np.ndarray:
    """Read one array of a file of `size` bytes, which bounds what its header may claim."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise BadInput(f"{name} has npy version {version}; versions 1.0 and 2.0 are read")
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise BadInput(f"{name} holds {dtype}; only arrays of numbers and texts are read")
    wanted = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or wanted > size:
        raise BadInput(f"{name} claims the shape {shape} of {dtype}, but has {size} bytes")
    data = file.read(wanted)
    if len(data) < wanted:
        raise BadInput(f"{name} breaks off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise BadInput(f"{name} holds numbers that are not finite")


# Pictures and recordings


def read_picture(path: Path, most_pixels: int = PIXELS) -> PIL.Image.Image:
    """Decode a picture, turned upright as the camera says, in the mode that it is stored in."""
    check_file(path, 16 * most_pixels)
    with decoding(path, "a picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own warnings; the limit below is lower
        with PIL.Image.open(path, formats=PICTURES) as file:
            if file.width * file.height > most_pixels:
                raise BadInput(
                    f"{path} has {file.width}x{file.height} pixels; at most {most_pixels} are read"
                )
            file.load()
            return PIL.ImageOps.exif_transpose(file)


def read_recording(path: Path) -> tuple[Float[np.ndarray, "n b"], int]:
    """Read a recording's samples, one column a channel, and its rate in hertz.

    Refused: rates outside 2 to 384 kHz, more than 32 channels, more than an hour or 2^28 samples
    of all channels together, samples that are not finite.
    """
    import soundfile  # only here: the other examples do without it

    check_file(path, 2**32)
    with decoding(path, "a recording"):
        about = soundfile.info(str(path))
        check_recording(path, about.frames, about.channels, about.samplerate)
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not np.isfinite(wave).all():
        raise BadInput(f"{path} holds samples that are not finite numbers")
    return wave, rate


def check_recording(path: Path, samples: int, channels: int, rate: int) -> None:
    """Refuse what a recording's header claims if no memory should be allocated for it."""
    if not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"{path} has {rate} samples a second; {RATES[0]} to {RATES[1]} are read")
    if not 1 <= channels <= CHANNELS:
        raise BadInput(f"{path} has {channels} channels; at most {CHANNELS} are read")
    if samples * channels > min(SECONDS * rate, SAMPLES):
        raise BadInput(
            f"{path} lasts {samples / rate:.0f} s in {channels} channels at {rate} Hz; "
            f"at most {SECONDS:.0f} s and {SAMPLES} samples in all are read"
        )
