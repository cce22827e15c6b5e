"""No call makes the host wait for a GPU, so a CUDA graph can capture it.

Without a GPU: tensors that have a shape and no values stand for those of a GPU, so whatever would
ask for a value raises. The bodies of the operators are recorded like this in
`test_kernel_resources`; here it is all that stands around them. Tables that a structure makes at
its first use may wait, and are made beforehand.
"""

import contextlib
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import cached

pytestmark = pytest.mark.compiled  # the shape checks ask for more than there is

MADE_WITH_OTHERS = ("_kept", "_coarsened")
SPACES = {
    "even": ndgpa.Grid((16, 16), 4, 2, time_axis=0),
    "ragged": ndgpa.Grid((15, 17), 4, 2, time_axis=0),
    "even clusters": ndgpa.Clusters(
        torch.arange(256) // 8, torch.arange(32) // 4, torch.arange(256)
    ),
    "ragged clusters": ndgpa.Clusters(
        torch.tensor([0] * 7 + [1] * 3 + [2] * 10 + [3] * 20),
        torch.tensor([0, 0, 1, 1]),
        torch.arange(40) // 3,
    ),
    "batch": ndgpa.disjoint([ndgpa.Sequence(n, 4, 2) for n in (40, 21)]),
}
RULES = {
    "top-k": ndgpa.TopK(2),
    "shared": ndgpa.TopK(2, share="all", force=ndgpa.Own() | ndgpa.Fixed((0,))),
    "top-p": ndgpa.TopP(0.5),
    "ratio": ndgpa.TopRatio(0.5),
    "union": ndgpa.TopK(2) | ndgpa.Own(),
    "fixed": ndgpa.Fixed((0, 1)),
    "levels": ndgpa.MultiLevel((2, 2)),
    "straight-through": ndgpa.StraightThrough(ndgpa.TopK(2)),
    "perturbed": ndgpa.PerturbedTopK(2),
    "projection": ndgpa.SoftTopK(2),
    "second look": ndgpa.Refine(ndgpa.TopK(3), 2),
    "codes": ndgpa.Codebook(2, 8),
    "heads": ndgpa.PerHead((ndgpa.TopK(1), ndgpa.TopK(2))),
}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_no_value_is_asked_for(
    space: SpatialStructure, rule: Rule, causal: bool, masked: bool, gpu: None
) -> None:
    if causal and space.time is None:
        pytest.skip("has no time")
    with mock.patch.object(Tensor, "is_cuda", False):
        _call(space, rule, causal, masked, "cpu")
        space = _without_values(space)
    out = _call(space, rule, causal, masked, "meta")
    assert out.shape == (1, 2, space.num_sites, 8)


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("far", ["site", "block"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_no_value_of_the_far_field_is_asked_for(
    space: SpatialStructure, far: str, causal: bool, gpu: None
) -> None:
    if causal and space.time is None:
        pytest.skip("has no time")
    with mock.patch.object(Tensor, "is_cuda", False):
        _call(space, ndgpa.TopK(2), causal, True, "cpu", far=far)
        space = _without_values(space)
    out = _call(space, ndgpa.TopK(2), causal, True, "meta", far=far)
    assert out.shape == (1, 2, space.num_sites, 8)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of no device pass for those of a GPU."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def _call(
    space: SpatialStructure, rule: Rule, causal: bool, masked: bool, device: str, **options: Any
) -> Tensor:
    shape = 1, 2, space.num_sites, 8
    inputs = [torch.randn(shape, device=device, requires_grad=True) for _ in range(3)]
    mask = torch.ones(shape[::2], dtype=torch.bool, device=device) if masked else None
    out = ndgpa.gpa(*inputs, space, rule, causal=causal, key_mask=mask, **options)
    torch.autograd.grad(out.square().sum(), inputs)
    return out


def _without_values(space: SpatialStructure) -> SpatialStructure:
    """The structure with all its tables, and those that it has made with others."""
    for kind in type(space).__mro__:
        for name in (name for name, x in vars(kind).items() if isinstance(x, cached)):
            with contextlib.suppress(AssertionError):  # what takes a time, where there is none
                getattr(space, name)
    copies: dict[SpatialStructure, SpatialStructure] = {}

    def copy(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to("meta")
        if isinstance(x, torch.device):
            return torch.device("meta")
        if isinstance(x, tuple):
            return tuple(copy(y) for y in x)
        if isinstance(x, WeakKeyDictionary):
            return WeakKeyDictionary({copy(k): copy(y) for k, y in x.items()})
        if isinstance(x, dict):
            return {k: copy(y) for k, y in x.items()}
        if isinstance(x, SpatialStructure):
            if x not in copies:
                copies[x] = object.__new__(type(x))
                for k, y in sorted(
                    vars(x).items(), key=lambda item: item[0] in ("_kept", "_coarsened")
                ):
                    vars(copies[x])[k] = copy(y)
            return copies[x]
        return x

    return copy(space)
