"""Every test: deterministic examples, uninitialised memory filled with NaN."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# A contract class runs its tests once for each class that inherits it: that is what it is for.
hypothesis.settings.register_profile(
    "default",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
    suppress_health_check=[hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.register_profile(
    "sweep", hypothesis.settings.get_profile("default"), max_examples=400, derandomize=False
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _fill_uninitialized_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
