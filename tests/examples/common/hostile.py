"""Run a command as a shell would, and the files that every command must survive."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from examples.common.commands import command


def refusal(main: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says: one sentence on stderr, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command(main)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and what they hold."""
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def bad_outputs(tmp_path: Path, name: str) -> Iterable[tuple[Path, str]]:
    """Names that a file cannot be written to, and what is said of each."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / name).mkdir(parents=True)
    yield tmp_path / "folder" / name, "is a folder, not a file that can be written"
    yield tmp_path / "file" / name, "is a file, not a folder"
    yield Path("/proc/1") / name, "cannot be written into"


def bad_folders(tmp_path: Path) -> Iterable[tuple[Path, str]]:
    """Names that no folder can be made of, and what is said of each."""
    (tmp_path / "file").write_text("in the way")
    yield tmp_path / "file", "is a file, not a folder"
    yield tmp_path / "file" / "deeper", "is a file, not a folder"
    yield Path("/proc/1/none"), "cannot be written into"
