"""Hostile checkpoints, pictures, key points and folders end with one sentence and exit code 2."""

import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.common import checkpoints
from examples.people.figures.cache import VERSION
from tests.examples.people import made_up
from tests.examples.pose_morphing.shell import MORPHING, SHIPPED, end_of

RECORD = next(SHIPPED.glob("*.json")).name


# Checkpoints: what morph, evaluate and export read


def copy_of(folder: Path) -> Path:
    """The shipped checkpoint in a folder of its own."""
    shutil.copytree(SHIPPED, folder / "run")
    return folder / "run"


def record(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the JSON beside the tensors."""

    def damage(run: Path) -> None:
        path = run / RECORD
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def model(**options: object) -> Callable[[Path], None]:
    def change(said: dict) -> dict:
        said["facts"]["model"] |= options
        return said

    return record(change)


def without_model_field(said: dict) -> dict:
    del said["facts"]["model"]["attention"]
    return said


def tensors(data: Callable[[Path], bytes]) -> Callable[[Path], None]:
    """Replace the tensors, with a JSON that has their hash."""

    def damage(run: Path) -> None:
        path = (run / RECORD).with_suffix(".safetensors")
        path.write_bytes(data(path))
        said = json.loads((run / RECORD).read_text())
        (run / RECORD).write_text(json.dumps(said | {"sha256": checkpoints.digest(path)}))

    return damage


def not_finite(run: Path) -> None:
    found = checkpoints.load(run / RECORD)
    name = next(iter(found.tensors))
    bad = found.tensors | {name: torch.full_like(found.tensors[name], float("nan"))}
    shutil.rmtree(run)
    checkpoints.save(run, found.step, bad, found.facts)


CHECKPOINTS = {
    "empty JSON": lambda run: (run / RECORD).write_text(""),
    "a list": record(lambda said: [said]),
    "null": record(lambda said: None),
    "deep": lambda run: (run / RECORD).write_text("[" * 10_000 + "]" * 10_000),
    "no hash": record(lambda said: {"step": 1, "facts": {}}),
    "no facts": record(lambda said: {k: x for k, x in said.items() if k != "facts"}),
    "facts are a list": record(lambda said: said | {"facts": [1]}),
    "no model": record(lambda said: said | {"facts": {}}),
    "model is null": record(lambda said: said | {"facts": {"model": None}}),
    "model without a field": record(without_model_field),
    "model with a field too many": model(colour="red"),
    "step is text": record(lambda said: said | {"step": "many"}),
    "negative size": model(size=[-128, 64]),
    "enormous size": model(size=[2**40, 2**40]),
    "size of one": model(size=[128]),
    "negative width": model(channels=[16, -32, 64, 96, 128]),
    "enormous width": model(channels=[2**30] * 5),
    "width that the file lacks": model(channels=[8000] * 5),
    "many levels": model(channels=[16] * 1000),
    "no level": model(channels=[]),
    "width is text": model(query_width="16"),
    "enormous kernel": model(fusion_kernel=10**6 + 1),
    "unknown attention": model(attention="MAGIC_8"),
    "attention of endless digits": model(attention=f"GPA512_{'9' * 5000}_16"),
    "unknown fusion": model(fusion="cold"),
    "truncated tensors": tensors(lambda path: path.read_bytes()[:5000]),
    "empty tensors": tensors(lambda path: b""),
    "huge header": tensors(lambda path: struct.pack("<Q", 2**62) + b"{}"),
    "a renamed pickle": tensors(lambda path: b"\x80\x04cos\nsystem\n."),
    "not finite": not_finite,
    "tensors missing": lambda run: (run / RECORD).with_suffix(".safetensors").unlink(),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_hostile_checkpoint(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(tmp_path)
    CHECKPOINTS[kind](run)
    out = tmp_path / "out.png"
    code, said = end_of(
        f"{MORPHING}.morph", ["0", "0", "--model", str(run), "--out", str(out)], capsys
    )
    assert code == 2
    assert said.startswith("error: ")
    assert "--data" not in said  # which is what the same command says of a good checkpoint
    assert len(said) < 600
    assert not out.exists()


# Pictures and key points: what morph reads of a user's own, and check and prepare of folders


def photo(folder: Path) -> Path:
    made_up.save(folder / "me.png", made_up.picture((256, 176)))
    (folder / "me.json").write_text(json.dumps([made_up.standing().tolist()]))
    return folder


def points(content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "me.json").write_text(json.dumps(content))


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "me.json").write_text(content)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))


STANDING = made_up.standing()
PEOPLE = {
    "empty": text(""),
    "null": text("null"),
    "a number": text("7"),
    "floats": points([1.5, 2.5]),
    "deep": text("[" * 10_000 + "]" * 10_000),
    "an object": points({"a": 1}),
    "NaN": text(json.dumps([np.full((18, 2), np.nan).tolist()])),
    "huge integers": text("[[" + ",".join([f"[1{'0' * 400},1]"] * 18) + "]]"),
    "text for numbers": points([[["x", "y"]] * 18]),
    "parts of the picture": points([(STANDING / 256).tolist()]),
    "a box a million wide": points([(STANDING * [1e4, 1]).tolist()]),
    "far off the picture": points([(STANDING + np.array([5000, 0])).tolist()]),
    "nobody": points([[[-1, -1]] * 18]),
    "two people": points([STANDING.tolist()] * 2),
    "OpenPose without people": points({"people": []}),
    "OpenPose with text": points({"people": [{"pose_keypoints_2d": ["a"] * 75}]}),
    "OpenPose with 15 points": points({"people": [{"pose_keypoints_2d": [1.0] * 45}]}),
    "OpenPose's people are null": points({"people": None}),
    "COCO without keys": points([{"keypoints": [1.0] * 51}]),
    "COCO with 5 points": points([{"image_id": "me.png", "keypoints": [1.0] * 15}]),
    "not text": lambda folder: (folder / "me.json").write_bytes(b"\xff\xfe\x00\xd8"),
    "no picture": lambda folder: (folder / "me.png").write_bytes(b"hello"),
    "empty picture": lambda folder: (folder / "me.png").write_bytes(b""),
    "truncated picture": lambda folder: (folder / "me.png").write_bytes(
        (folder / "me.png").read_bytes()[:300]
    ),
    "huge picture": lambda folder: (folder / "me.png").write_bytes(png_of(2**20, 2**20)),
    "picture is a folder": lambda folder: (
        (folder / "me.png").unlink(),
        (folder / "me.png").mkdir(),
    ),
}


def test_a_picture_of_ones_own_that_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the next test, which fails there for what was damaged alone."""
    me, out = str(photo(tmp_path) / "me.png"), tmp_path / "out.png"
    code, _ = end_of(
        f"{MORPHING}.morph", [me, me, "--model", str(SHIPPED), "--out", str(out)], capsys
    )
    assert code == 0
    assert out.is_file()


@pytest.mark.parametrize("kind", PEOPLE)
def test_a_hostile_picture_of_ones_own(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photo(tmp_path), tmp_path / "out.png"
    PEOPLE[kind](folder)
    me = str(folder / "me.png")
    code, said = end_of(
        f"{MORPHING}.morph", [me, me, "--model", str(SHIPPED), "--out", str(out)], capsys
    )
    assert code == 2
    assert said.startswith("error: ")
    assert not out.exists()


def singles_json(content: object) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        made_up.save(root / "a.png", made_up.picture((256, 176)))
        (root / "keypoints.json").write_text(json.dumps(content))

    return make


def singles_npz(**arrays: np.ndarray) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        made_up.save(root / "a.png", made_up.picture((256, 176)))
        np.savez(root / "keypoints.npz", **arrays)

    return make


def zip_bomb(root: Path) -> None:
    """An archive that claims to unpack to 8 GB."""
    made_up.save(root / "a.png", made_up.picture((256, 176)))
    with zipfile.ZipFile(root / "keypoints.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("keypoints.npy", "names.npy"):
            archive.writestr(name, bytes(2**20))
            archive.filelist[-1].file_size = 2**32 - 2


def huge_array(root: Path) -> None:
    """An npy header that claims 2^60 people."""
    made_up.save(root / "a.png", made_up.picture((256, 176)))
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**60}, 18, 3), }}".encode()
    header = header.ljust(118 - 1) + b"\n"
    with zipfile.ZipFile(root / "keypoints.npz", "w") as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
        archive.writestr("keypoints.npy", start + header)
        archive.writestr("names.npy", start + header)


def figures_json(**options: object) -> Callable[[Path], None]:
    said = {"version": VERSION, "size": [64, 32], "identities": 30, "poses": 2, "seed": 0}
    said |= {"truth": False}

    def make(root: Path) -> None:
        for name in ("images", "points", "yaw"):
            np.save(root / f"{name}.npy", np.zeros(3))
        (root / "figures.json").write_text(json.dumps(said | options))

    return make


def stored(about: object, pictures: int = 1) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / "train").mkdir()
        (root / "train" / "images.u8").write_bytes(bytes(64 * 32 * 3 * pictures))
        np.save(root / "train" / "points.npy", np.zeros((1, 18, 3), np.float32))
        np.save(root / "train" / "pairs.npy", np.zeros((0, 2), np.int64))
        (root / "train" / "about.json").write_text(json.dumps(about))

    return make


GOOD = STANDING.tolist()
FOLDERS = {
    "not there": lambda root: root.rmdir(),
    "a file": lambda root: (root.rmdir(), root.write_text("x")),
    "nothing in it": lambda root: None,
    "a name that leads out": singles_json({"../a.png": GOOD}),
    "an absolute name": singles_json({"/etc/passwd": GOOD}),
    "a list for names": singles_json([GOOD]),
    "names of null": singles_json(None),
    "COCO with a name that leads out": singles_json(
        {
            "images": [{"id": 1, "file_name": "../../a.png"}],
            "annotations": [{"image_id": 1, "keypoints": [9.0] * 51}],
        }
    ),
    "npz with text": singles_npz(keypoints=np.array(["x"]), names=np.array(["a.png"])),
    "npz without names": singles_npz(keypoints=np.zeros((1, 18, 2))),
    "npz that is damaged": lambda root: (root / "keypoints.npz").write_bytes(b"PK\x03\x04" * 99),
    "a zip bomb": zip_bomb,
    "an array of 2^60 people": huge_array,
    "figures of a negative size": figures_json(size=[-64, 32]),
    "figures of an enormous size": figures_json(size=[2**40, 2**40]),
    "figures of 2^60 people": figures_json(identities=2**60),
    "figures whose arrays are others": figures_json(),
    "figures whose size is text": figures_json(size="large"),
    "figures of null": lambda root: (root / "figures.json").write_text("null"),
    "stored with a list": stored([1, 64, 32, 3]),
    "stored with too large a shape": stored({"shape": [10**12, 64, 32, 3]}),
    "stored with a negative shape": stored({"shape": [-1, 64, 32, 3]}),
    "stored with floats": stored({"shape": [1.5, 64, 32, 3]}),
    "stored with fewer bytes": stored({"shape": [2, 64, 32, 3]}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hostile_folder_of_people(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    FOLDERS[kind](root)
    arguments = ["--data", str(root), "--out", str(out), "--preset", "tiny64"]
    code, said = end_of(f"{MORPHING}.train", [*arguments, "--device", "cpu"], capsys)
    assert code == 2
    assert said.startswith("error: ")
    assert not out.exists()
