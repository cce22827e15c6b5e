"""Drawn problems as in `tests/test_problems.py`, small ones, in Triton's interpreter."""

import pytest
import torch

from tests.laws import OF_BACKENDS, check
from tests.problems import problem
from tests.test_problems import COUNT, FIRST

# A problem takes seconds in the interpreter, where the dots of bfloat16 are wrong.
DTYPES = (torch.float32, torch.float16)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + -(-COUNT // 10)))
def test_a_drawn_problem_keeps_every_law_of_backends(seed: int) -> None:
    check(problem(seed, DTYPES, sites=10), ("triton",), OF_BACKENDS)
