"""Weights that others saved: nothing in the file is run, and nothing too large is read."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples.common.pickles import read_weights
from examples.common.untrusted import BadInput


class Hostile:
    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, ("pickled",)


def bomb(path: Path) -> None:
    """An archive that claims to unpack to 4 GB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.filelist[-1].file_size = 2**32 - 2


FILES = {
    "a program": lambda path: path.write_bytes(pickle.dumps(Hostile())),
    "a program in a zip file": lambda path: torch.save(Hostile(), path),
    "a list": lambda path: torch.save([torch.zeros(1)], path),
    "text for a tensor": lambda path: torch.save({"x": "y"}, path),
    "not finite": lambda path: torch.save({"x": torch.tensor(float("nan"))}, path),
    "truncated": lambda path: (
        torch.save({"x": torch.zeros(999)}, path),
        path.write_bytes(path.read_bytes()[:900]),
    ),
    "empty": lambda path: path.write_bytes(b""),
    "a zip bomb": bomb,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_of_weights_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    FILES[kind](path)
    with pytest.raises(BadInput, match=r"weights\.pth (does not hold weights|holds numbers)"):
        read_weights(path, "weights")
    assert not (tmp_path / "pickled").exists()


def test_both_formats_of_torch_are_read(tmp_path: Path) -> None:
    saved = {"x": torch.arange(3.0)}
    for new in (True, False):
        torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        assert torch.equal(read_weights(tmp_path / "x.pth", "weights")["x"], saved["x"])
