"""Every command ends alike: a sentence and an exit code, and no half of a file."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from examples.common.commands import (
    DivergedError,
    Stopped,
    check_count,
    check_device,
    check_number,
    command,
    locked,
    set_threads,
)
from examples.common.files import check_folder, check_output, replacing, write_tensors, write_text
from examples.common.untrusted import BadInput


def end_of(main: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught:
        command(main)
    return caught.value.code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.fixture
def _small_disk() -> Iterator[None]:
    """No file grows beyond 1000 bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadInput("x is bad"), "error: x is bad\n"),
        (ValueError("two\n  lines"), "error: two lines\n"),
        (DivergedError("step 5"), "error: step 5\n"),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device\n"),
        (MemoryError(), "error: there is not enough memory for this\n"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = end_of(raising(error), capsys)
    assert code == 2
    assert text.endswith(said)
    assert text.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command(raising(ZeroDivisionError()))


def test_ctrl_c_names_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(raising(KeyboardInterrupt()), capsys) == (130, "stopped: nothing was saved\n")

    def main() -> None:
        write_text(tmp_path / "first", "whole")
        with replacing(tmp_path / "second") as part:
            part.write_text("half")
            signal.raise_signal(signal.SIGINT)

    assert end_of(main, capsys) == (130, f"stopped: {tmp_path / 'first'} saved\n")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert end_of(raising(Stopped("3 steps saved")), capsys) == (130, "stopped: 3 steps saved\n")


@pytest.mark.usefixtures("_small_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 2000),
        lambda path: write_tensors(path, {"x": torch.zeros(2000)}),
    ],
    ids=["text", "tensors"],
)
def test_a_full_disk_leaves_the_old_file(
    write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    code, text = end_of(lambda: write(path), capsys)
    assert code == 2
    assert text.startswith(f"error: {path}")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "old")]


def test_an_output_that_cannot_be_written_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="is a folder, not a file that can be written"):
        check_output(tmp_path)
    with pytest.raises(BadInput, match="is not a regular file and is not replaced"):
        check_output(Path("/dev/null"))
    with pytest.raises(BadInput, match="file is a file, not a folder"):
        check_output(tmp_path / "file" / "deeper" / "out.png")
    with pytest.raises(BadInput, match="cannot be written into"):
        check_folder(Path("/proc/1/none"))
    check_output(tmp_path / "new" / "deeper" / "out.png")
    check_output(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written into"):
        check_output(tmp_path / "out.png")


def test_numeric_options_have_bounds() -> None:
    check_count("--steps", 1)
    check_number("--clip", 1.0, 0, 1, above=True)
    for value in (float("nan"), float("inf"), -1, 0, 1.5):
        with pytest.raises(BadInput, match=r"^--clip must be "):
            check_number("--clip", value, 0, 1, above=True)
    with pytest.raises(BadInput, match="--accumulate must be at least 1, got 0"):
        check_count("--accumulate", 0)
    with pytest.raises(BadInput, match="--threads must be at least 0, got -4"):
        set_threads(-4)
    with pytest.raises(BadInput, match="--threads must be at most 1024, got 100000"):
        set_threads(100_000)


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cpu")
    check_device("cuda:0")
    with pytest.raises(BadInput, match="--device cuda:1: torch finds 1 CUDA devices here"):
        check_device("cuda:1")
    for name in ("banana", "meta", "", "cuda:x"):
        with pytest.raises(BadInput, match="expected cpu, cuda or cuda:N"):
            check_device(name)


HOLD = """
import sys, time
from pathlib import Path
from examples.common.commands import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_trainers_in_one_folder_and_a_lock_of_a_dead_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BadInput, match="another process is training in"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass
