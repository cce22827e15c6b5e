"""A rule reads from top to bottom: what it calls does not call back up, but for a few times."""

import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

import pytest
import torch

import ndgpa
from ndgpa.selection import Rule
from tests.test_house import IMPORTS

pytestmark = pytest.mark.compiled  # the shape checks add calls of their own


@cache
def below(name: str) -> frozenset[str]:
    """The files that a file imports, directly or not."""
    direct = IMPORTS.get(name, set())
    return frozenset(direct.union(*(below(other) for other in direct)))


def climbs(run: Callable[[], Any]) -> set[str]:
    """The functions that are called from a file below their own; those of structures aside.

    There the base calls what its subclass overrides, which a reader of rules need not follow.
    """
    found = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_back is None or frame.f_code.co_filename == "<string>":
            return  # what a dataclass makes is not for reading
        callee, caller = (
            f.f_globals.get("__name__", "").removeprefix("ndgpa.") for f in (frame, frame.f_back)
        )
        if not callee.startswith("structures") and caller in below(callee):
            found.add(f"{caller} calls {callee}.{frame.f_code.co_qualname}")

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize(
    "rule",
    [ndgpa.TopK(2, force=ndgpa.Own()), ndgpa.MultiLevel((2, 2, 2), force=ndgpa.Own())],
    ids=["top-k", "levels"],
)
def test_a_rule_climbs_at_most_four_times(rule: Rule, causal: bool) -> None:
    space, x = ndgpa.Sequence(64, 2), torch.randn(1, 2, 64, 4)
    problem = ndgpa.Problem.of(x, x, space, causal=causal)
    found = climbs(lambda: rule.select(problem))
    assert len(found) <= 4, found
