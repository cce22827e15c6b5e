"""A far field as one calls it: a case by hand, sentences, operators, memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa import Bundles
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.attention.far_chunked import far_chunked
from ndgpa.attention.far_merge import merge_far
from tests.attention.far.laws import KINDS


def test_the_operators_pass_opcheck() -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    selected, cell = torch.tensor([[[[0, 2], [1, -1]]]]).int(), torch.tensor([0, 1, 1])
    keys = normal(1, 1, 4, 3), normal(1, 1, 4, 2), normal(1, 1, 4)
    times = torch.tensor([0, 0, 1, 2])
    tables = selected, cell, cell, times, None, None
    torch.library.opcheck(far_chunked, (normal(1, 2, 3, 3), *keys, *tables, 0.5))
    torch.library.opcheck(bundle_blocks, (torch.randn(1, 1, 4, 3), keys[2] > 0, times, None, 2))
    fields = normal(1, 2, 5, 2), normal(1, 2, 5), normal(1, 2, 5, 2), normal(1, 2, 5)
    for contain in (False, True):
        torch.library.opcheck(merge_far, (*fields, contain))


def test_it_maps() -> None:
    """Over samples that are no batch."""
    x, space = torch.randn(3, 1, 2, 24, 4), ndgpa.Image((4, 6), 2)
    for kind in KINDS:

        def call(y: Tensor, kind: Any = kind) -> Tensor:
            return ndgpa.gpa(y, y, y, space, ndgpa.Refine(ndgpa.TopK(3), 2), far=kind)

        torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(y) for y in x]))


def test_a_case_by_hand() -> None:
    """Four sites in two blocks; each cell reads its own block. Logits are 0, so weights count."""
    space = ndgpa.Sequence(4, 2)
    query, key = torch.zeros(1, 1, 4, 1), torch.randn(1, 1, 4, 1)
    value = torch.tensor([1.0, 3.0, 10.0, 20.0])[None, None, :, None]
    selection = ndgpa.Selection(torch.tensor([[[[0], [1]]]]).int())
    for kind in KINDS:
        out, lse = ndgpa.attend(query, key, value, selection, space, far=kind, return_lse=True)
        assert out.flatten().tolist() == pytest.approx(4 * [34 / 4])
        assert lse.flatten().tolist() == pytest.approx(4 * [math.log(4)])


def test_backward_holds_no_matrix_of_sites_and_blocks() -> None:
    image = ndgpa.Image((64, 64), 2, 2)
    inputs = [torch.randn(1, 1, 4096, 16, requires_grad=True) for _ in range(3)]
    for kind in ("block", "site"):
        saved: list[int] = []

        def count(x: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            ndgpa.gpa(*inputs, image, 4, far=kind)
        assert sum(saved) < 5 * sum(x.numel() for x in inputs)


@pytest.mark.bad_input
def test_what_cannot_be_is_said() -> None:
    x, space = torch.randn(1, 1, 16, 4), ndgpa.Sequence(16, 4)
    with pytest.raises(ValueError, match="unknown far 'cells'; expected one of 'site', 'block'"):
        ndgpa.gpa(x, x, x, space, 2, far="cells")
    with pytest.raises(ValueError, match="count must be at least 1"):
        Bundles(0)
    with pytest.raises(ValueError, match="unknown far 'cells'"):
        ndgpa.GPA(2, far="cells")
    with pytest.raises(ValueError, match="backend 'triton' needs tensors on a GPU; query is on"):
        ndgpa.gpa(x, x, x, space, 2, far="site", backend="triton")
    with pytest.raises(NotImplementedError, match="'torch' has no forward-mode derivative; use"):
        torch.func.jvp(lambda q: ndgpa.gpa(q, x, x, space, 2, far="site"), (x,), (x,))
