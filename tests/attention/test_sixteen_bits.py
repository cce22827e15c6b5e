"""Float16 and bfloat16 on the CPU: every rule on every structure, in chunks of any size."""

import pytest
import torch

import ndgpa
from ndgpa.attention.chunks import BUDGET
from ndgpa.selection import Rule

DTYPES = [torch.float16, torch.bfloat16]
SPACES = {
    "sequence": ndgpa.Sequence(96, 8, 2),
    "ragged grid": ndgpa.Grid((9, 11), 4, 2, time_axis=0),
    "clusters": ndgpa.Clusters(torch.arange(90) % 9, torch.arange(9) // 4, torch.arange(90) // 3),
    "points": ndgpa.PointCloud(torch.randn(90, 3, generator=torch.Generator().manual_seed(0)), 8),
    "batch": ndgpa.disjoint([ndgpa.Sequence(n, 4, 2) for n in (40, 21)]),
}
RULES = {
    "top-k": ndgpa.TopK(3),
    "top-p": ndgpa.TopP(0.5),
    "ratio": ndgpa.TopRatio(0.3),
    "union": ndgpa.TopK(2) | ndgpa.Own(),
    "fixed": ndgpa.Fixed((0, 2)),
    "levels": ndgpa.MultiLevel((2, 2)),
    "projection": ndgpa.SoftTopK(2),
    "perturbed": ndgpa.PerturbedTopK(2, seed=1),
    "heads": ndgpa.PerHead((ndgpa.TopK(1), ndgpa.TopK(2))),
}
CASES = [
    pytest.param(space, rule, causal, id=f"{name}, {kind}{', causal' if causal else ''}")
    for name, space in SPACES.items()
    for kind, rule in RULES.items()
    for causal in (False, True)
    if not causal or space.time is not None
]
CASES += [
    pytest.param(SPACES[name], ndgpa.Window(2), causal, id=f"{name}, window, {causal}")
    for name in ("sequence", "ragged grid")
    for causal in (False, True)
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGET, "cpu", 3000)


@pytest.mark.parametrize(("space", "rule", "causal"), CASES)
def test_results_are_the_exact_ones_rounded(
    space: ndgpa.SpatialStructure, rule: Rule, causal: bool
) -> None:
    """Output and gradients, of sums that are taken in float32: at most twice the rounding."""
    for dtype in DTYPES:
        inputs = torch.randn(4, 1, 2, space.num_sites, 8).to(dtype)
        selection = ndgpa.select(*inputs[:2], space, rule, causal=causal)
        ours = _derivatives(inputs, selection, space, causal)
        assert {x.dtype for x in ours} == {dtype}
        for x, truth in zip(ours, _derivatives(inputs.double(), selection, space, causal)):
            rounded = (truth.to(dtype).double() - truth).norm()
            assert (x.double() - truth).norm() <= 2 * rounded + 1e-5 * truth.norm()


@pytest.mark.parametrize(("space", "rule", "causal"), CASES)
def test_autocast_casts_the_inputs_of_phase_2(
    space: ndgpa.SpatialStructure, rule: Rule, causal: bool
) -> None:
    for dtype in DTYPES:
        inputs = torch.randn(3, 1, 2, space.num_sites, 8)
        selection = ndgpa.select(*inputs[:2], space, rule, causal=causal)
        with torch.autocast("cpu", dtype):
            out = ndgpa.gpa(*inputs, space, rule, causal=causal)
        expected = ndgpa.attend(*inputs.to(dtype), selection, space, causal=causal)
        assert out.dtype == dtype
        assert torch.equal(out, expected)


def _derivatives(
    inputs: torch.Tensor,
    selection: ndgpa.Selection,
    space: ndgpa.SpatialStructure,
    causal: bool,
) -> list[torch.Tensor]:
    """The output and the gradients of query, key and value, by the last of the inputs."""
    query, key, value, weight = inputs.unbind()
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    bias = None if selection.bias is None else selection.bias.detach().to(inputs.dtype)
    kept = ndgpa.Selection(selection.blocks, bias)
    out = ndgpa.attend(*leaves, kept, space, causal=causal, backend="torch")
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]
