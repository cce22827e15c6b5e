"""Every test: deterministic examples, uninitialised memory filled with NaN."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# A shell starts what runs in the background with Ctrl-C ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A contract class runs its tests once for each class that inherits it: that is what it is for.
hypothesis.settings.register_profile(
    "default",
    max_examples=15,
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


# A contract names no marks: they would be unknown to whoever inherits it elsewhere.
MARKS = {
    "test_it_compiles_as_one_graph": "compiled",
    "test_it_exports": "compiled",
    "test_errors_come_before_any_work": "bad_input",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    compiled: dict[str, object] = {}
    for item in items:
        name, _, example = item.name.partition("[")
        if name in MARKS:
            item.add_marker(MARKS[name])
        if name == "test_it_compiles_as_one_graph" and isinstance(item, pytest.Function):
            # Of the operators of a file the first compiles in `make test`, and not with inductor.
            first = compiled.setdefault(str(item.path), item.cls)
            if example == "inductor]" or item.cls is not first:
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def _fill_uninitialized_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
