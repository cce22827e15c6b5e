"""Memory is counted to the byte."""

import subprocess
import sys

import torch

from ndgpa.analysis import peak_bytes


def test_the_peak_counts_what_is_held_at_one_time() -> None:
    def call() -> torch.Tensor:
        first = torch.zeros(1000, dtype=torch.float32)
        second = torch.zeros(500, dtype=torch.float64)
        del first
        third = torch.zeros(100, dtype=torch.float32)
        return second[0] + third[0]

    assert 8000 <= peak_bytes(call) < 8200


def test_what_was_there_before_does_not_count() -> None:
    kept = torch.zeros(1 << 20)
    assert peak_bytes(lambda: kept.add_(1)) < 1000


def test_importing_the_analysis_leaves_the_environment_as_it_is() -> None:
    code = (
        "import os, torch; before = dict(os.environ); import ndgpa.analysis; "
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
