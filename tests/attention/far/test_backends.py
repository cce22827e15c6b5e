"""What a cell does not select takes part through means: each backend against loops."""

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.testing import CausalContract, draw
from ndgpa.testing.derivatives import _ramp
from tests.attention.far.laws import KINDS, RARE, FarLaws, drawn, kinds, leaves_of


class TestLiteral(FarLaws):
    backend = "reference"


class TestChunked(FarLaws):
    backend = "torch"

    @given(st.data())
    @RARE
    def test_second_derivatives_are_right(self, data: Any) -> None:
        problem, selection, kind = drawn(data)
        leaves, _ = leaves_of(problem, selection)

        def call(*xs: Tensor) -> Tensor:
            chosen = ndgpa.Selection(selection.blocks, xs[3] if len(xs) > 3 else None)
            return self.attend(problem.with_inputs(*xs[:3]), chosen, kind)

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query, or one site, a chunk."""
    for name, budget in (("far_rows", "_CHUNK"), ("far_merge", "_CHUNK"), ("chunks", "BUDGET")):
        monkeypatch.setitem(getattr(import_module(f"ndgpa.attention.{name}"), budget), "cpu", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
class TestOneQueryAChunk(TestChunked):
    pass


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", KINDS)
def test_small_chunks_change_nothing(kind: Any) -> None:
    """To the second derivative, for heads that share keys but no selection."""
    space = ndgpa.Grid((3, 5), 2, 1, time_axis=0)
    query, key, value = (torch.randn(2, h, 15, 3, dtype=torch.float64) for h in (4, 2, 2))
    blocks = torch.randint(-1, 6, (2, 4, 6, 2), dtype=torch.int32)
    results: list[list[Tensor]] = []
    for backend in ("torch", "reference"):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        options: Any = {"far": kind, "causal": True, "backend": backend}
        out = ndgpa.attend(*leaves, ndgpa.Selection(blocks), space, **options)
        grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves, create_graph=True)
        bend = torch.stack([(g * _ramp(g)).sum() for g in grads]).sum()
        results.append([out, *grads, *torch.autograd.grad(bend, leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


class TestCausalSelectionWithFarField(CausalContract):
    """Through the selection too."""

    def rules(self, problem: draw.Problem) -> st.SearchStrategy[ndgpa.TopK]:
        return st.builds(ndgpa.TopK, st.integers(1, 3))

    def options(self, data: Any) -> dict[str, Any]:
        return {"far": data.draw(kinds)}
