"""GPA as an operator."""

import torch

import ndgpa
from ndgpa.operators import Operator
from ndgpa.testing import OperatorContract


class TestGPA(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(3)


class TestGPAOfARule(OperatorContract):
    structure = ndgpa.Grid((2, 4, 6), 2, cell=(1, 2, 2))

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(ndgpa.TopK(1, force=ndgpa.Own()), scale=1.0, affinity="euclidean")


class TestGPAOnTwoSpaces(OperatorContract):
    key_structure = ndgpa.Sequence(30, 4)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2)


def test_options_are_passed_on() -> None:
    x = torch.randn(1, 1, 16, 4)
    structure = ndgpa.Sequence(16, 4)
    mask = torch.arange(16)[None] < 10
    operator = ndgpa.GPA(2, scale=0.7, affinity="euclidean", backend="reference")
    expected = ndgpa.gpa(
        x, x, x, structure, 2, scale=0.7, affinity="euclidean", key_mask=mask, backend="reference"
    )
    assert torch.equal(operator(x, x, x, structure, key_mask=mask), expected)


def test_the_mask_knows_of_sampled_sites_and_of_the_coarse_branch() -> None:
    x = torch.randn(1, 1, 16, 4)
    structure = ndgpa.Sequence(16, 4)
    dense, sampled, coarse = (
        operator.mask(structure, structure, x, x)
        for operator in (
            ndgpa.GPA(2),
            ndgpa.GPA(2, read=ndgpa.structures.Strided(2)),
            ndgpa.GPA(2, coarse="add"),
        )
    )
    assert bool((dense.sum(-1) == 8).all())
    assert bool((sampled.sum(-1) == 4).all())
    assert bool((dense | ~sampled).all())
    assert bool(coarse.all())
