"""Hostile files and options of the examples on photographs and graphs."""

import importlib
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.common import checkpoints
from examples.common.commands import locked
from examples.images import learnt_selection, patterns
from examples.images.copy_photo import demo
from examples.images.copy_photo.train import Training, load_stages, save_stages
from tests.examples.common.hostile import bad_folders, bad_outputs, refusal, tree

GRAPHS = ("mesh", "superpixels")


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A command flushes them to zero for its whole process."""
    yield
    torch.set_flush_denormal(False)


PICTURES = {
    "empty": (b"", "cannot be read as a picture"),
    "truncated": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read as a picture"),
    "huge": (b"P6 10000 10000 255\n", "at most 50000000 are read"),
    "bomb": (b"P6 100000 100000 255\n", "cannot be read as a picture"),
    "short": (b"P6 100 100 255\n123", "cannot be read as a picture"),
    "small": (b"P5 8 8 255\n" + b"\0" * 64, "is 8x8 pixels; the shorter side needs"),
}


@pytest.mark.parametrize(("data", "said"), PICTURES.values(), ids=PICTURES)
def test_hostile_photographs(tmp_path: Path, data: bytes, said: str, capsys) -> None:
    (tmp_path / "mine.png").write_bytes(data)
    options = demo.Options(tmp_path / "mine.png", tmp_path / "out", smoke=True)
    heard = refusal(lambda: demo.main(options), capsys)
    assert "mine.png" in heard
    assert said in heard
    assert not (tmp_path / "out").exists()


def test_folders_of_copy_photo(tmp_path: Path, capsys) -> None:
    for out, said in bad_folders(tmp_path):
        options = demo.Options(out=out, smoke=True)
        assert said in refusal(lambda options=options: demo.main(options), capsys)
    with locked(tmp_path / "busy"):
        options = demo.Options(out=tmp_path / "busy", smoke=True)
        assert "another process is training" in refusal(lambda: demo.main(options), capsys)


def stages() -> dict[str, bytes]:
    return {
        "empty": b"",
        "huge header": struct.pack("<Q", 2**60) + b"{}",
        "renamed pickle": pickle.dumps({"options": {}, "states": {}}),
    }


@pytest.mark.parametrize("data", stages().values(), ids=stages())
def test_hostile_stages_are_made_anew_and_it_is_said(tmp_path: Path, data: bytes, capsys) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(data)
    assert load_stages(path, Training()) == {}
    assert "training from the start" in capsys.readouterr().out
    save_stages(path, Training(), {"matcher": {"x": torch.tensor(float("nan"))}})
    assert load_stages(path, Training()) == {}


LEARNT = {"steps": 0, "batch": -1, "seeds": 0, "learning_rate": float("nan")}


@pytest.mark.parametrize(("name", "value"), LEARNT.items())
def test_bad_options_of_learnt_selection(tmp_path: Path, name: str, value: Any, capsys) -> None:
    options = learnt_selection.Options(**{"out": tmp_path / "out", name: value})
    said = refusal(lambda: learnt_selection.main(options), capsys)
    assert f"--{name.replace('_', '-')} must be" in said
    assert not tree(tmp_path)


def test_an_unknown_way_of_learnt_selection(tmp_path: Path, capsys) -> None:
    options = learnt_selection.Options(out=tmp_path / "out", ways=("hardest",))
    assert "--ways takes some of 'hard'" in refusal(lambda: learnt_selection.main(options), capsys)
    assert not tree(tmp_path)


def test_outputs_of_learnt_selection_and_patterns(tmp_path: Path, capsys) -> None:
    for out, said in bad_outputs(tmp_path, "out.png"):
        assert said in refusal(lambda out=out: patterns.main(out), capsys)
    assert "must end in .png" in refusal(lambda: patterns.main(tmp_path / "x.doc"), capsys)
    options = learnt_selection.Options(out=tmp_path / "file")
    assert "is a file, not a folder" in refusal(lambda: learnt_selection.main(options), capsys)
    assert set(tree(tmp_path)) == {"file"}


GRAPH_OPTIONS = {
    "steps": 0,
    "batch": 0,
    "rate": float("nan"),
    "seeds": (),
    "threads": -4,
}
OWN_OPTIONS = [
    *((name, option, value) for name in GRAPHS for option, value in GRAPH_OPTIONS.items()),
    ("mesh", "surfaces", 0),
    ("mesh", "tests", -1),
    ("mesh", "resolution", 10**6),
    ("superpixels", "views", 0),
    ("superpixels", "test_views", 0),
    ("superpixels", "size", 10**6),
    ("superpixels", "regions", 10**9),
]


@pytest.mark.parametrize(("name", "option", "value"), OWN_OPTIONS)
def test_bad_options_of_graphs(tmp_path: Path, name: str, option: str, value: Any, capsys) -> None:
    pytest.importorskip("torch_geometric")
    main = importlib.import_module(f"examples.graphs.{name}.train").main
    said = refusal(lambda: main(out=tmp_path / "out", **{option: value}), capsys)
    assert f"--{option.replace('_', '-')} " in said
    assert not tree(tmp_path)


@pytest.mark.parametrize("name", GRAPHS)
def test_folders_of_graphs(tmp_path: Path, name: str, capsys) -> None:
    pytest.importorskip("torch_geometric")
    main = importlib.import_module(f"examples.graphs.{name}.train").main
    for out, said in bad_folders(tmp_path):
        assert said in refusal(lambda out=out: main(out=out, smoke=True), capsys)
    checkpoints.save(tmp_path / "smoke/runs/gpa-0", 1, {"network/x": torch.ones(1)}, {})
    record = tmp_path / "smoke/runs/message_passing-0/step-00000001.json"
    record.parent.mkdir()
    record.write_text("[" * 10**5)
    heard = refusal(lambda: main(out=tmp_path, smoke=True), capsys)
    assert "every checkpoint in" in heard
