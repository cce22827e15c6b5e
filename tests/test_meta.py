"""Tensors of device "meta", which have shapes and no values, give what those of a CPU give."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.structures.means import block_sums
from tests.test_waiting import RULES, SPACES

pytestmark = pytest.mark.compiled  # the shape checks ask for more than there is

GRID = ndgpa.Grid((6, 7), 2, 1, time_axis=0)
OPERATORS: dict[str, Any] = {
    "gpa": ndgpa.GPA(2),
    "gpa with a coarse branch": ndgpa.GPA(2, coarse="add"),
    "gpa, sampled": ndgpa.GPA(2, read=ndgpa.structures.Strided(2)),
    "gpa, near blocks": ndgpa.GPA(ndgpa.Window(1)),
    "full": ndgpa.Full(),
    "full, causal": ndgpa.Full(causal=True),
    "nothing": ndgpa.operators.NoAttention(),
    "nystrom": ndgpa.operators.Nystrom(4),
    "performer": ndgpa.operators.Performer(8),
    "neighborhood": ndgpa.operators.Neighborhood((3, 3), rel_bias=True, heads=4),
    "hydra": ndgpa.operators.Hydra(
        [ndgpa.operators.Neighborhood(3), ndgpa.operators.Neighborhood(3, 2)]
    ),
    "local sparse": ndgpa.operators.LocalSparse(),
    "several axes": ndgpa.operators.MultiAxis(2),
}


def forms(*xs: Tensor) -> list[tuple[Any, ...]]:
    return [(x.shape, x.dtype) for x in xs]


def inputs(space: Any, device: str, heads: int = 2) -> tuple[list[Tensor], Tensor]:
    shape = 1, heads, space.num_sites, 8
    xs = [torch.randn(shape, device=device, requires_grad=True) for _ in range(3)]
    return xs, torch.ones(1, space.num_sites, dtype=torch.bool, device=device)


def call(space: Any, rule: Any, causal: bool, backend: str | None, device: str) -> list[Any]:
    xs, mask = inputs(space, device)
    selection = ndgpa.select(*xs[:2], space, rule, causal=causal, key_mask=mask)
    out, lse = ndgpa.attend(
        *xs, selection, space, causal=causal, key_mask=mask, backend=backend, return_lse=True
    )
    if selection.bias is not None:
        out = out + 0 * selection.bias.sum()
    return forms(selection.blocks, out, lse, *torch.autograd.grad(out.sum(), xs))


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_rule_on_every_structure(space: Any, rule: Any, causal: bool) -> None:
    if causal and space.time is None:
        pytest.skip("has no time")
    backend = "torch"
    assert call(space, rule, causal, backend, "meta") == call(space, rule, causal, backend, "cpu")


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("backend", ["reference", "torch", None])
def test_every_backend(backend: str | None, causal: bool) -> None:
    assert call(GRID, 2, causal, backend, "meta") == call(GRID, 2, causal, backend, "cpu")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str) -> None:
    found = []
    for device in ("cpu", "meta"):
        operator = copy.deepcopy(OPERATORS[name])
        if isinstance(operator, torch.nn.Module):
            operator = operator.to(device)
        xs, mask = inputs(GRID, device, heads=4)
        out = operator(*xs, GRID, key_mask=mask)
        grads = torch.autograd.grad(out.sum() + sum(x.sum() for x in xs), xs)
        found.append(forms(out, *grads))
    assert found[0] == found[1]


def test_sums_over_blocks() -> None:
    x, tables = torch.empty(1, 2, 42, 8, device="meta", dtype=torch.half), GRID.to("meta")
    sums = block_sums(x, None, tables.blocks, tables.block_of_site)
    assert forms(sums) == [((1, 2, GRID.num_blocks, 8), torch.float32)]
