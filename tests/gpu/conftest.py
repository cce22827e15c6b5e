"""The kernels on a real GPU: `make gpu`, or `pytest tests/gpu`. Left out where there is none."""

import hypothesis
import pytest
import torch


def pytest_ignore_collect() -> bool | None:
    return None if torch.cuda.is_available() else True


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")


if torch.cuda.is_available():
    hypothesis.settings.register_profile(
        "gpu",
        hypothesis.settings.get_profile("default"),
        max_examples=25,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("gpu")
