"""No attention: the paper's NO."""

import torch

import ndgpa
from ndgpa.operators import Operator
from ndgpa.testing import OperatorContract


class TestNothing(OperatorContract):
    twice = False

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.operators.NoAttention()


def test_it_adds_nothing() -> None:
    x = torch.randn(2, 1, 9, 4)
    assert bool((ndgpa.operators.NoAttention()(x, x, x, ndgpa.Sequence(9, 3)) == 0).all())
