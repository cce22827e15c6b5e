"""Run a command of the examples as it is typed, in this process."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

MORPHING = "examples.images.pose_morphing"
SHIPPED = Path(__file__).parents[3] / "examples/images/pose_morphing/checkpoints/gpa"


def end_of(
    module: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """The exit code of a command, and the last line that it printed to the error stream."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy: the module was imported before
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            code = end.code
        else:
            code = 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said.strip().splitlines()[-1] if said.strip() else ""


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
