"""Damaged and hostile files end in one sentence, before memory is spent on what they claim."""

import io
import json
import os
import pickle
import resource
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save, save_file

from examples.common import untrusted
from examples.common.untrusted import (
    BadInput,
    check_recording,
    fields,
    inside,
    load_module,
    number,
    read_array,
    read_arrays,
    read_json,
    read_picture,
    read_recording,
    read_tensors,
)

MEMORY = 3 * 2**30  # a reader that trusts a claim of more dies of it


@pytest.fixture(autouse=True, scope="module")
def _little_memory() -> Iterator[None]:
    """Leave 3 GiB above what the tests hold already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def header(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def saved_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A picture that claims a size, with no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def wav(rate: int, samples: int, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(b"\0\1" * samples * channels)
    return file.getvalue()


def flac_of(samples: int) -> bytes:
    """The header of a FLAC file that claims so many samples at 16 kHz, and nothing after it."""
    about = (16000 << 44) | (15 << 36) | samples
    info = struct.pack(">HH", 4096, 4096) + b"\0" * 6 + about.to_bytes(8) + b"\0" * 16
    return b"fLaC\x80\x00\x00\x22" + info


FLOAT = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
TENSORS = {
    "empty": (b"", "too short"),
    "a single byte": (b"x", "too short"),
    "truncated": (save({"x": torch.ones(100)})[:-4], "cannot be read as safetensors"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "its header claims 4611686018427387904"),
    "renamed pickle": (pickle.dumps({"x": 1}), "cannot be read as safetensors"),
    "header is a list": (header([1, 2]), "cannot be read as safetensors"),
    "deep header": (header([])[:8] + b"[" * 10**5, "cannot be read as safetensors"),
    "negative size": (
        header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        "cannot be read as safetensors",
    ),
    "enormous size": (
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "cannot be read as safetensors",
    ),
    "overlapping": (header(FLOAT | {"y": FLOAT["x"]}, b"\0" * 8), "cannot be read as safetensors"),
    "NaN": (save({"x": torch.tensor([1, float("nan")])}), r"not finite \(x\)"),
    "infinite in 16 bits": (save({"x": torch.tensor([float("inf")]).half()}), r"not finite \(x\)"),
}
JSON = {
    "empty": (b"", "cannot be read as JSON"),
    "not JSON": (b"step: 3", "cannot be read as JSON"),
    "binary": (b"\xff\xfe\x00{", "cannot be read as JSON"),
    "a list": (b"[1]", "must be an object, got a list"),
    "null": (b"null", "must be an object, got null"),
    "a number": (b"1.5", "must be an object, got a number"),
    "deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper than 32"),
    "very deep": (b'{"a":' + b"[" * 10**6, "cannot be read as JSON"),
    "NaN": (b'{"a": NaN}', "a number that is not finite"),
    "infinite": (b'{"a": [1e999]}', "a number that is not finite"),
    "a million digits": (b'{"a": ' + b"9" * 10**6 + b"}", "cannot be read as JSON"),
}
ARRAYS = {
    "empty": (b"", "cannot be read as npz"),
    "no zip": (b"PK\x03\x04 and nothing more", "cannot be read as npz"),
    "truncated": (npz({"x.npy": npy((9,), data=b"\0" * 36)})[:-30], "cannot be read as npz"),
    "lacks it": (npz({"y.npy": npy((0,))}), "lacks the array 'x'"),
    "no array": (npz({"x.npy": b"text"}), "cannot be read as npz"),
    "pickle": (
        npz({"x.npy": saved_npy(np.array([{}], object))}),
        "only arrays of numbers and texts",
    ),
    "bomb": (npz({"x.npy": npy((2**28,)) + b"\0" * 2**28}), "unpacks to 1 arrays of 268435"),
    "enormous": (npz({"x.npy": npy((2**50,))}), "claims the shape"),
    "negative": (npz({"x.npy": npy((-1, 4), data=b"\0" * 16)}), "claims the shape"),
    "NaN": (npz({"x.npy": saved_npy(np.array([np.nan]))}), "not finite"),
    "many": (npz({f"{i}.npy": b"" for i in range(1001)}), "unpacks to 1001 arrays"),
}
PICTURES = {
    "empty": (b"", "cannot be read as a picture"),
    "no picture": (b"GIF89a", "cannot be read as a picture"),
    "no pixels": (png(8, 8), "cannot be read as a picture"),
    "a million wide": (png(10**6, 10**6), "cannot be read as a picture|at most"),
    "above the limit": (png(7072, 7072), "7072x7072 pixels; at most 50000000"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
}
RECORDINGS = {
    "empty": (b"", "cannot be read as a recording"),
    "no recording": (b"RIFF????WAVE", "cannot be read as a recording"),
    "1 Hz": (wav(1, 1000), "has 1 samples a second; 2000 to 384000 are read"),
    "2 GHz": (wav(2**31 - 1, 1000), "samples a second|cannot be read as a recording"),
    "2^36 samples": (
        flac_of(2**36 - 1),
        "lasts 4294967 s in 1 channels at 16000 Hz; at most 3600 s",
    ),
}


def refused(read: Callable[[Path], object], path: Path, data: bytes, said: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BadInput, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(("data", "said"), TENSORS.values(), ids=TENSORS)
def test_hostile_safetensors(tmp_path: Path, data: bytes, said: str) -> None:
    refused(read_tensors, tmp_path / "x.safetensors", data, said)


@pytest.mark.parametrize(("data", "said"), JSON.values(), ids=JSON)
def test_hostile_json(tmp_path: Path, data: bytes, said: str) -> None:
    refused(read_json, tmp_path / "x.json", data, said)


@pytest.mark.parametrize(("data", "said"), ARRAYS.values(), ids=ARRAYS)
def test_hostile_npz(tmp_path: Path, data: bytes, said: str) -> None:
    refused(lambda path: read_arrays(path, ["x"], 2**27), tmp_path / "x.npz", data, said)


@pytest.mark.parametrize(("data", "said"), PICTURES.values(), ids=PICTURES)
def test_hostile_pictures(tmp_path: Path, data: bytes, said: str) -> None:
    refused(read_picture, tmp_path / "x.png", data, said)


@pytest.mark.parametrize(("data", "said"), RECORDINGS.values(), ids=RECORDINGS)
def test_hostile_recordings(tmp_path: Path, data: bytes, said: str) -> None:
    pytest.importorskip("soundfile")
    refused(read_recording, tmp_path / "x.flac", data, said)


READERS = {
    "json": read_json,
    "tensors": read_tensors,
    "npz": lambda path: read_arrays(path, ["x"]),
    "npy": read_array,
    "picture": read_picture,
    "recording": read_recording,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    for path, said in [
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "none", "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (Path("a\0b"), "a file"),
        (tmp_path / ("a" * 300), "a file"),
    ]:
        with pytest.raises(BadInput, match=said):
            read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is not a file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_of_many_gigabytes_is_not_read(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(BadInput, match="has 8589934592 bytes; at most"):
        read(path)


def test_whole_files_are_read_as_they_are(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(3, 4), "n": torch.arange(5)}
    save_file(tensors, tmp_path / "x.safetensors")
    for name, x in read_tensors(tmp_path / "x.safetensors").items():
        assert torch.equal(x, tensors[name])
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, "c", null, true]}')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, "c", None, True]}
    for array in (np.arange(12.0).reshape(3, 4), np.asfortranarray(np.eye(3, 2)), np.array(7)):
        np.savez_compressed(tmp_path / "x.npz", x=array, y=array)
        assert np.array_equal(read_arrays(tmp_path / "x.npz", ["x"])["x"], array)
        np.save(tmp_path / "x.npy", array)
        assert np.array_equal(read_array(tmp_path / "x.npy"), array)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    PIL.Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "x.png")), pixels)


def test_a_network_of_other_shapes_is_refused() -> None:
    net = torch.nn.Linear(2, 3)
    load_module(net, net.state_dict(), Path("x"))
    for wrong in (torch.nn.Linear(3, 2).state_dict(), {}, {"weight": net.weight}):
        with pytest.raises(BadInput, match="x does not hold a network of this program"):
            load_module(net, wrong, Path("x"))


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "..",
        "a\\..\\x",
        "C:\\x",
        "\\\\host\\x",
        "",
        "a\0",
        3,
        None,
    ],
)
def test_a_name_that_leads_out_of_its_folder_is_refused(name: object) -> None:
    with pytest.raises(BadInput, match=r"leads out of data|is not a file name"):
        inside(Path("data"), name)


def test_a_name_within_its_folder_is_joined() -> None:
    assert inside(Path("data"), "a/b..c.jpg") == Path("data/a/b..c.jpg")


def test_fields_have_their_kinds() -> None:
    assert fields({"a": 1, "b": 2}, {"a": int}, "x") == {"a": 1, "b": 2}
    with pytest.raises(BadInput, match="x lacks the field 'b'"):
        fields({"a": 1}, {"a": int, "b": str}, "x")
    with pytest.raises(BadInput, match="the field 'a' of x must be an integer, got true or false"):
        fields({"a": True}, {"a": int}, "x")
    with pytest.raises(BadInput, match="x must be an object, got a list"):
        fields([], {"a": int}, "x")
    assert number(3, "x", 0, 3) == 3
    with pytest.raises(BadInput, match="x must lie between 0 and 3, got 4"):
        number(4, "x", 0, 3)


def test_an_hour_counts_all_channels() -> None:
    check_recording(Path("x"), 1800 * 8000, 2, 8000)
    with pytest.raises(BadInput, match="lasts 1800 s in 2 channels"):
        check_recording(Path("x"), 1800 * 8000 + 1, 2, 8000)
    with pytest.raises(BadInput, match="lasts 1000 s in 1 channels at 384000 Hz"):
        check_recording(Path("x"), 1000 * 384_000, 1, 384_000)
    with pytest.raises(BadInput, match="has 33 channels"):
        check_recording(Path("x"), 100, 33, 8000)
    assert untrusted.RATES == (2000, 384000)
