"""Kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels`, a process of its own.

Triton reads the variable when it is imported, and kernels made for the interpreter compile nothing,
so these tests share no process with those that compile: `test_compiled.py`, which runs without
the variable. The shape hook of jaxtyping wraps functions, which Triton's own rewriting does not
survive, so it stays off here. Examples are few (HYPOTHESIS_PROFILE=sweep draws more), for a kernel
takes seconds in the interpreter, and shrinking one would take hours.
"""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

_REPEATED = (
    "test_the_same_input_gives_the_same_bits",
    "test_it_agrees_with_the_reference_to_the_second_derivative",
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    SWEEP = os.environ.get("HYPOTHESIS_PROFILE") == "sweep"
    hypothesis.settings.register_profile(
        "interpreter",
        hypothesis.settings.get_profile("sweep" if SWEEP else "default"),
        max_examples=60 if SWEEP else 3,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("interpreter")
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # a GPU does not warn of an infinity either


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-slow` what the contract draws and another test has by one problem."""
    for item in items:
        if item.path.name == "test_contract.py" and item.name in _REPEATED:
            item.add_marker("slow")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what is compiled where the interpreter runs, and all else where it does not."""
    compiled = collection_path.name == "test_compiled.py"
    return True if compiled == INTERPRETED and collection_path.is_file() else None


def _in_order(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A product as a GPU sums it: feature after feature, in the dtype of the total.

    numpy's own order depends on the shapes, and logits would differ between kernels by what they
    never differ by on a GPU.
    """
    a, b = a.astype(total.dtype), b.astype(total.dtype)
    for feature in range(a.shape[-1]):
        total = total + a[..., :, feature, None] * b[..., None, feature, :]
    return total


def _numbers(x) -> np.ndarray:
    """The numbers of a tile; the interpreter holds bfloat16 as its bits."""
    if x.dtype.scalar.name != "bf16":
        return x.data
    return (x.data.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture(autouse=True, scope="session")
def _order_of_sums() -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self, a, b, d, *options):
        return TensorHandle(_in_order(_numbers(a), _numbers(b), d.data), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
