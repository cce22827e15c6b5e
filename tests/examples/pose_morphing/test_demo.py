"""`make demo` runs on what its extra installs, and is done within two minutes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# of the extras for tests, linting, kernels, graphs, sound and video
ABSENT = ("triton", "av", "soundfile", "skvideo", "pymetis", "torch_geometric", "hypothesis")
ABSENT += ("pytest", "beartype", "mypy", "ruff")
PROGRAM = f"""
import resource, sys
for name in {ABSENT}:
    sys.modules[name] = None  # as if it were not installed
import torch
torch.set_num_threads(1)
from pathlib import Path
from examples.images.pose_morphing.demo import Options, main
if len(sys.argv) > 1:
    main(Options(Path(sys.argv[1])))
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print("processor seconds", sum(each.ru_utime + each.ru_stime for each in used))
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_demo_needs_nothing_beyond_its_extra() -> None:
    run()


@pytest.mark.slow
def test_the_demo_takes_less_than_two_minutes_of_one_processor(tmp_path: Path) -> None:
    started = time.monotonic()
    said = run(str(tmp_path))
    seconds = float(said.split("processor seconds")[1])
    assert seconds < 120, f"{seconds:.0f} s of {time.monotonic() - started:.0f} s"
    for name in ("pairs.png", "distortion.png", "lines.png", "evaluation.md", "evaluation.json"):
        assert (tmp_path / name).is_file()
