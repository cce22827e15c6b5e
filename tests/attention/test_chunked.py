"""The `torch` backend keeps the contract, in chunks of any size, in bounded memory."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch.autograd import gradcheck, gradgradcheck

import ndgpa
from ndgpa.attention.cells import Cells
from ndgpa.attention.chunks import BUDGET
from ndgpa.testing import BackendContract, draw


class TestChunked(BackendContract):
    backend = "torch"


class TestOneTileAChunk(TestChunked):
    """The same with chunks as small as they can be."""

    test_errors_keep_to_twice_those_of_plain_torch: Any = None  # below

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BUDGET, "cpu", 1)


@pytest.mark.slow
class TestErrorsOfOneTileAChunk(TestOneTileAChunk):
    test_errors_keep_to_twice_those_of_plain_torch = (
        BackendContract.test_errors_keep_to_twice_those_of_plain_torch
    )


@given(st.data())
@draw.FEW
def test_gradients_of_first_and_second_order(data: Any) -> None:
    problem = data.draw(draw.problems(max_batch=1))
    selection = data.draw(draw.selections(problem, bias=True))
    leaves = [x[..., :2].clone().requires_grad_() for x in problem.inputs]
    bias = selection.bias.clone().requires_grad_()

    def call(*xs: torch.Tensor) -> torch.Tensor:
        return ndgpa.attend(
            *xs[:3],
            ndgpa.Selection(selection.blocks, xs[3]),
            problem.structure,
            **problem.options,
            backend="torch",
        )

    assert gradcheck(call, (*leaves, bias), fast_mode=True)
    assert gradgradcheck(call, (*leaves, bias), fast_mode=True)


def test_backward_holds_no_gathered_keys() -> None:
    """What is kept for the backward is of the size of the inputs, however many blocks are read."""
    image = ndgpa.Image((64, 64), 4, 2)
    inputs = [torch.randn(1, 1, 4096, 16, requires_grad=True) for _ in range(3)]
    saved: list[int] = []

    def count(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        ndgpa.gpa(*inputs, image, 200)
    assert sum(saved) < 1.3 * sum(x.numel() for x in inputs)


def test_a_short_last_block_is_masked_only_where_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BUDGET, "cpu", 1)  # one cell a chunk
    plain: list[bool] = []
    inner = Cells._is_plain
    monkeypatch.setattr(Cells, "_is_plain", lambda *xs: plain.append(inner(*xs)) or plain[-1])
    space = ndgpa.Sequence(14, 4)  # blocks of 4, 4, 4 and 2
    inputs = [torch.randn(1, 1, 14, 3, requires_grad=True) for _ in range(3)]
    selection = ndgpa.Selection(torch.tensor([[[[0, 1], [2, 3], [1, -1], [0, 2]]]]).int())
    out = ndgpa.attend(*inputs, selection, space, backend="torch")
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert plain == 2 * [True, False, False, True]
    expected = ndgpa.attend(*inputs, selection, space, backend="reference")
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(grads, torch.autograd.grad(expected.square().sum(), inputs)):
        torch.testing.assert_close(ours, theirs)


def test_a_bias_of_keys_costs_no_masking_where_it_hides_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So Euclidean attention, whose bias is finite, takes as few passes as dot products."""
    monkeypatch.setitem(BUDGET, "cpu", 1)  # one cell a chunk
    masked: list[bool] = []
    inner = Cells.tile

    def observed(cells: Cells, chunk: Any) -> Any:
        tile = inner(cells, chunk)
        masked.append(tile.is_masked)
        return tile

    monkeypatch.setattr(Cells, "tile", observed)
    space = ndgpa.Sequence(16, 4)
    inputs = [torch.randn(1, 1, 16, 3, requires_grad=True) for _ in range(3)]
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 9] = False  # of the third block
    selection = ndgpa.Selection(torch.tensor([[[[0, 1], [2, 3], [1, -1], [0, 3]]]]).int())
    options = {"affinity": "euclidean", "key_mask": mask}
    out = ndgpa.attend(*inputs, selection, space, backend="torch", **options)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert masked == 2 * [False, True, True, False]
    expected = ndgpa.attend(*inputs, selection, space, backend="reference", **options)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(grads, torch.autograd.grad(expected.square().sum(), inputs)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.bad_input
def test_forward_mode_derivatives_are_refused_and_not_dropped() -> None:
    x = torch.randn(1, 1, 12, 4)
    structure = ndgpa.Sequence(12, 3)

    def call(query: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        return ndgpa.gpa(query, x, x, structure, 2, backend=backend)

    with pytest.raises(NotImplementedError, match="'torch' has no forward-mode derivative; use"):
        torch.func.jvp(call, (x,), (x,))
    _, tangent = torch.func.jvp(lambda q: call(q, "reference"), (x,), (x,))
    step = (call(x + 1e-3 * x) - call(x - 1e-3 * x)) / 2e-3
    torch.testing.assert_close(tangent, step, rtol=1e-2, atol=1e-2)
