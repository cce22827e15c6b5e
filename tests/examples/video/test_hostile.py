"""Hostile files and options of the video commands."""

import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.common.untrusted import BadInput
from examples.video import evaluate, fill, long, train
from examples.video.clips import MOST_PIXELS, check_size, write_clip
from examples.video.weights import SHIPPED
from tests.examples.common.hostile import bad_folders, refusal, tree
from tests.examples.video.test_clips import clip_of, gradients


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """The commands flush them to zero for their whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "mine.mp4"
    write_clip(path, clip_of(gradients(8), tuple(range(0, 192, 24))))
    return path


def said_by(main: Callable[[Any], object], options: Any, capsys: Any) -> str:
    return refusal(lambda: main(options), capsys)


FILL = {
    "side": ({"side": -5}, "--side must be at least 16"),
    "huge side": ({"side": 10**9}, "--side must be at most 2048"),
    "frames": ({"frames": 0}, "--frames must be at least 3"),
    "first": ({"first": -1}, "--first must be at least 0"),
    "kappa": ({"kappa": 0}, "--kappa must be at least 1"),
    "endless run of frames": ({"missing": ("0-99999999999",)}, "takes numbers of frames"),
    "digits of another script": ({"missing": ("²",)}, "takes numbers of frames"),
    "folder for a clip": ({"clip": Path("/")}, "is a folder"),
    "device for a clip": ({"clip": Path("/dev/zero")}, "is not a file"),
}


@pytest.mark.parametrize(("change", "said"), FILL.values(), ids=FILL)
def test_bad_options_of_fill(
    tmp_path: Path, clip: Path, change: dict[str, Any], said: str, capsys
) -> None:
    options = replace(fill.Options(clip, missing=("3",), out=tmp_path / "out"), **change)
    assert said in said_by(fill.main, options, capsys)
    assert set(tree(tmp_path)) == {"mine.mp4"}


CLIPS = {
    "empty": b"",
    "no video": b"no film",
    "another kind": b"\x89PNG\r\n\x1a\n",
    "a header alone": struct.pack(">I", 24) + b"ftypisom" + b"\0" * 12,
}


@pytest.mark.parametrize("data", CLIPS.values(), ids=CLIPS)
def test_hostile_clips(tmp_path: Path, data: bytes, capsys) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    options = fill.Options(tmp_path / "a.mp4", missing=("3",), out=tmp_path / "out")
    assert "a.mp4 cannot be read as a video" in said_by(fill.main, options, capsys)
    assert not (tmp_path / "out").exists()


def test_frames_are_bounded_before_they_are_decoded() -> None:
    check_size(Path("x"), 1920, 1080, 128, 200)
    with pytest.raises(BadInput, match="x has frames of 1000000x1000000 pixels"):
        check_size(Path("x"), 10**6, 10**6, 128)
    with pytest.raises(BadInput, match="its frames have no size"):
        check_size(Path("x"), 0, 5, 128)
    with pytest.raises(BadInput, match=f"more than {MOST_PIXELS} pixels in 1 frames of 1000000x8"):
        check_size(Path("x"), 10**6, 8, 128)


def test_the_clip_is_never_overwritten(tmp_path: Path, clip: Path, capsys) -> None:
    given = clip.rename(tmp_path / "filled.mp4")
    before = tree(tmp_path)
    options = fill.Options(given, missing=("3",), out=tmp_path)
    assert "is the file that is read" in said_by(fill.main, options, capsys)
    assert tree(tmp_path) == before


HOLES = {
    "empty": (b"", "cannot be read as a picture"),
    "huge": (b"P6 10000 10000 255\n", "at most 50000000 are read"),
}


@pytest.mark.parametrize(("data", "said"), HOLES.values(), ids=HOLES)
def test_hostile_pictures_of_holes(
    tmp_path: Path, clip: Path, data: bytes, said: str, capsys
) -> None:
    (tmp_path / "holes.png").write_bytes(data)
    options = fill.Options(clip, tmp_path / "holes.png", out=tmp_path / "out")
    assert said in said_by(fill.main, options, capsys)
    assert not (tmp_path / "out").exists()


def networks() -> dict[str, bytes]:
    whole = SHIPPED.read_bytes()
    return {
        "empty": b"",
        "truncated": whole[:-100],
        "huge header": struct.pack("<Q", 2**60) + whole[8:],
        "renamed pickle": pickle.dumps({"x": 1}),
    }


@pytest.mark.parametrize("data", networks().values(), ids=networks())
def test_hostile_networks(tmp_path: Path, clip: Path, data: bytes, capsys) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    options = fill.Options(clip, missing=("3",), weights=path, out=tmp_path / "out")
    assert "net.safetensors" in said_by(fill.main, options, capsys)
    path.rename(tmp_path / "gpa.safetensors")
    judge = evaluate.Options(tmp_path, out=tmp_path / "out", smoke=True)
    assert "gpa.safetensors" in said_by(evaluate.main, judge, capsys)
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_not_finite_is_refused(tmp_path: Path, clip: Path, capsys) -> None:
    tensors = load_file(SHIPPED)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "net.safetensors")
    options = fill.Options(clip, missing=("3",), weights=tmp_path / "net.safetensors")
    assert "not finite" in said_by(fill.main, options, capsys)


TRAIN = {
    "no attention": ({"attentions": ()}, "--attentions needs at least one of gpa, window"),
    "no steps": ({"steps": 0}, "--steps must be at least 1"),
    "time NaN": ({"cpu_minutes": float("nan")}, "--cpu-minutes must be a finite number"),
    "frames": ({"frames": 1}, "--frames must be at least 3"),
    "side": ({"side": 0}, "--side must be at least 16"),
    "rate": ({"rate": float("inf")}, "--rate must be a finite number"),
    "seed": ({"seed": -1}, "--seed must be at least 0"),
}


@pytest.mark.parametrize(("change", "said"), TRAIN.values(), ids=TRAIN)
def test_bad_options_of_train(tmp_path: Path, change: dict[str, Any], said: str, capsys) -> None:
    options = replace(train.Options(("gpa",), out=tmp_path / "out"), **change)
    assert said in said_by(train.main, options, capsys)
    assert not tree(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"cpu_s_a_step": -1}', "[" * 10**5])
def test_a_plan_of_another_form_is_refused(tmp_path: Path, text: str, capsys) -> None:
    (tmp_path / "gpa").mkdir()
    (tmp_path / "gpa" / "plan.json").write_text(text)
    assert "plan.json" in said_by(train.main, train.Options(("gpa",), out=tmp_path), capsys)


def test_folders_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    for out, said in bad_folders(tmp_path):
        for main, options in (
            (fill.main, fill.Options(out=out)),
            (train.main, train.Options(out=out, smoke=True)),
            (evaluate.main, evaluate.Options(out=out, smoke=True)),
            (long.main, long.Options(out=out)),
        ):
            assert said in said_by(main, options, capsys)
    (tmp_path / "filled.mp4").mkdir()
    options = fill.Options(out=tmp_path)
    assert "filled.mp4 is a folder" in said_by(fill.main, options, capsys)
    assert set(tree(tmp_path)) == {"file"}


def test_a_run_is_extended_by_more_steps(tmp_path: Path, capsys) -> None:
    options = train.Options(("nothing",), steps=2, frames=4, side=16, out=tmp_path)
    train.main(options)
    train.main(replace(options, steps=3))
    assert "planned for 2 steps, from step 2 on 3" in capsys.readouterr().out
    assert "2 are fewer" in said_by(train.main, options, capsys)


def test_evaluation_and_the_long_clip_have_bounds(tmp_path: Path, capsys) -> None:
    for change in ({"seeds": 0}, {"processes": -1}):
        options = replace(evaluate.Options(out=tmp_path), **change)
        assert f"--{next(iter(change))} must be" in said_by(evaluate.main, options, capsys)
    for change in ({"frames": -1}, {"side": 10**6}, {"kappa": 0}):
        options = replace(long.Options(out=tmp_path), **change)
        assert f"--{next(iter(change))} must be" in said_by(long.main, options, capsys)
    assert not tree(tmp_path)


def test_a_tall_clip_has_a_sheet_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "tall.mp4"
    write_clip(path, clip_of(gradients(3, 1600, 16), (0, 24, 48)))
    fill.main(fill.Options(path, missing=("1",), side=16, out=tmp_path))
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert max(sheet.size) < 5000


def test_a_picture_of_holes_may_be_of_any_mode(tmp_path: Path) -> None:
    for mode in ("1", "L", "RGB", "RGBA", "P"):
        PIL.Image.fromarray(np.eye(4, dtype=np.uint8) * 255).convert(mode).save(tmp_path / "h.png")
        assert fill.read_holes(tmp_path / "h.png", 4, 4).sum() == 4
