"""Kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels`, a process of its own.

Triton reads the variable when it is imported, and kernels made for the interpreter compile nothing,
so these tests cannot share a process with those that compile; without the variable they are left
out. The shape hook of jaxtyping wraps functions, which Triton's own rewriting does not survive, so
it stays off here.
"""

import os

import numpy as np
import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect() -> bool | None:
    return None if INTERPRETED else True


def _in_order(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A product as a GPU sums it: feature after feature, in the dtype of the total.

    numpy's own order depends on the shapes, and logits would differ between kernels by what they
    never differ by on a GPU.
    """
    a, b = a.astype(total.dtype), b.astype(total.dtype)
    for feature in range(a.shape[-1]):
        total = total + a[..., :, feature, None] * b[..., None, feature, :]
    return total


@pytest.fixture(autouse=True, scope="session")
def _order_of_sums() -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self, a, b, d, *options):
        return TensorHandle(_in_order(a.data, b.data, d.data), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


@pytest.fixture(autouse=True, scope="session")
def _unwritten_memory_is_nan() -> None:
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
