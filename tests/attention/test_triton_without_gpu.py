"""What the `triton` backend says where it cannot run, and that nobody pays for it unasked."""

import subprocess
import sys

import pytest
import torch

import ndgpa

pytestmark = pytest.mark.bad_input


def test_importing_the_package_never_imports_triton():
    """Nor do kernels load on a call without them (torch itself looks for Triton on a call)."""
    program = """
import sys, torch, ndgpa
assert "triton" not in sys.modules, "import"
x = torch.randn(1, 1, 16, 4, requires_grad=True)
ndgpa.gpa(x, x, x, ndgpa.Sequence(16, 4), 2).sum().backward()
start = "ndgpa.attention.triton."
kernels = {name.removeprefix(start) for name in sys.modules if name.startswith(start)}
assert kernels == {"inputs", "ops", "far_ops"}, kernels
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def run(x):
    return ndgpa.gpa(x, x, x, ndgpa.Sequence(16, 4), 2, backend="triton")


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_tensors_on_the_cpu_are_refused():
    pytest.importorskip("triton")
    words = "needs tensors on a GPU; query is on cpu: use backend='torch', or set TRITON_INTERPRET"
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=words):
            run(torch.randn(1, 1, 16, 4, dtype=dtype))


def test_nothing_is_computed_before_the_backend_is_refused():
    class Untouched(ndgpa.TopK):
        def select(self, problem):
            raise AssertionError("Phase 1 ran")

    x = torch.randn(1, 1, 16, 4)
    for backend in ("triton", "cuda"):
        with pytest.raises(ValueError, match="backend"):
            ndgpa.gpa(x, x, x, ndgpa.Sequence(16, 4), Untouched(2), backend=backend)


def test_double_precision_is_refused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(TypeError, match=r"computes in .*float32; got torch.float64"):
        run(torch.randn(1, 1, 16, 4, dtype=torch.float64))


def test_wide_heads_are_refused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="at most 256 features; query has 257"):
        run(torch.randn(1, 1, 16, 257))


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the triton package, which is not installed"):
        run(torch.randn(1, 1, 16, 4))
