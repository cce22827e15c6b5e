"""The kernels on a real GPU: `make gpu-test`, or `pytest tests/gpu`. Left out where there is none.

With GPU_OUT=FOLDER every result is on the disk before the next (FOLDER/test.jsonl), and what has
passed is not run again. GPU_DRY=1 collects the tests without a GPU, to see that they can be.
"""

import json
import os
from pathlib import Path

import hypothesis
import pytest
import torch
from gpu_tests import outcomes

OUT = os.environ.get("GPU_OUT")
DRY = os.environ.get("GPU_DRY") == "1"
LARGEST = ("pivot", "clusters", "over_many_rows")  # run last


def pytest_ignore_collect() -> bool | None:
    return None if torch.cuda.is_available() or DRY else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed; the largest come last."""
    found = outcomes(Path(OUT) / "test.jsonl") if OUT else {}
    done = {test for test, row in found.items() if row["outcome"] == "passed"}
    left = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = sorted(left, key=lambda item: any(word in item.name for word in LARGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a result; of several processes the one that hears of all does."""
    if OUT is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.outcome != "passed":
        row = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 2)}
        if report.outcome == "failed":
            row["error"] = str(report.longrepr)[-1500:]
        Path(OUT).mkdir(parents=True, exist_ok=True)
        with (Path(OUT) / "test.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")


if torch.cuda.is_available() or DRY:
    hypothesis.settings.register_profile(
        "gpu",
        hypothesis.settings.get_profile("default"),
        max_examples=25,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("gpu")
