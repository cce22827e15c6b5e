"""Drawn problems, over all spaces, rules, dtypes and backends, against literal loops.

`PROBLEMS` says how many, 150 if nothing does; `PROBLEMS_SEED` is the number of the first. A failure
prints both for the problem that failed, in one line.
"""

import os

import pytest

from tests.laws import check
from tests.problems import problem

COUNT = int(os.environ.get("PROBLEMS", "100"))
FIRST = int(os.environ.get("PROBLEMS_SEED", "0"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_drawn_problem_keeps_every_law(seed: int) -> None:
    check(problem(seed), ("reference", "torch"))
