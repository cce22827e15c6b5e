"""No operator allocates more than a small multiple of its inputs, unless it is dense."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
import ndgpa

def resident_MB():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

side, operators = int(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(1)
warm = ndgpa.Image((16, 16), 4)
image = ndgpa.Image((side, side), 4)
inputs = [torch.randn(1, 2, side * side, 32, requires_grad=True) for _ in range(3)]
tensors_MB = 4 * inputs[0].nbytes / 1e6
for name in operators:
    operator = eval("ndgpa." + name)
    x = torch.randn(1, 2, 256, 32, requires_grad=True)
    operator(x, x, x, warm).sum().backward()
before = resident_MB()
for name in operators:
    operator = eval("ndgpa." + name)
    operator(*inputs, image).sum().backward()
    for x in inputs:
        x.grad = None
    print(name, (resident_MB() - before) / tensors_MB)
"""

OPERATORS = (
    "GPA(12)",
    "Neighborhood(7)",
    "Hydra.of([5], [1, 3])",
    "Nystrom(128)",
    "Performer(32, 128)",
    "MultiAxis(8)",
    "LocalSparse('ltr')",
    "LocalSparse('strided')",
)


def growth(side: int) -> dict[str, float]:
    """The growth of the process so far over the bytes of query, key, value and output."""
    command = [sys.executable, "-c", PROGRAM, str(side), *OPERATORS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return {name: float(multiple) for name, multiple in lines}


def test_memory_at_128x128_is_a_small_multiple_of_the_inputs() -> None:
    """Query, key, value and output are 17 MB here, a dense affinity matrix of 2 heads 2147 MB."""
    assert max(growth(128).values()) < 5


@pytest.mark.slow
def test_memory_at_256x256_is_a_small_multiple_of_the_inputs() -> None:
    """67 MB against 34 GB."""
    assert max(growth(256).values()) < 5
