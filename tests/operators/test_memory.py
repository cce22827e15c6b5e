"""No operator allocates more than a small multiple of its inputs, unless it is dense."""

import pytest
import torch

import ndgpa
from ndgpa.analysis import peak_bytes
from ndgpa.operators import Operator

OPERATORS: list[Operator] = [
    ndgpa.GPA(12),
    ndgpa.GPA(12, far="block"),
    ndgpa.GPA(12, far="site"),
    ndgpa.operators.Neighborhood(7),
    ndgpa.operators.Hydra.of([5], [1, 3]),
    ndgpa.operators.Nystrom(128),
    ndgpa.operators.Performer(32, 128),
    ndgpa.operators.MultiAxis(8),
    ndgpa.operators.LocalSparse("ltr"),
    ndgpa.operators.LocalSparse("strided"),
]


def multiple(operator: Operator, side: int) -> float:
    """The most that is held, forward and backward, over query, key, value and output."""
    image = ndgpa.Image((side, side), 4)
    inputs = [torch.randn(1, 2, side * side, 32, requires_grad=True) for _ in range(3)]

    def run() -> None:
        operator(*inputs, image).sum().backward()

    return peak_bytes(run) / (4 * inputs[0].nbytes)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_memory_at_128x128_is_a_small_multiple_of_the_inputs(operator: Operator) -> None:
    """Query, key, value and output are 17 MB here, two dense affinity matrices 2147 MB."""
    assert multiple(operator, 128) < 3


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_memory_at_256x256_is_a_small_multiple_of_the_inputs(operator: Operator) -> None:
    """67 MB against 34 GB."""
    assert multiple(operator, 256) < 3
