"""Options that make no operator are refused, in one sentence."""

from typing import Any

import pytest

import ndgpa

pytestmark = pytest.mark.bad_input

OPERATORS: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: ndgpa.operators.Neighborhood(7.0),
        TypeError,
        r"kernel must be an int or a tuple of ints; got 7\.0",
    ),
    (
        lambda: ndgpa.operators.MultiAxis(2.5),
        TypeError,
        r"block must be an int or a tuple of ints; got 2\.5",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), OPERATORS)
def test_what_is_no_operator_is_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()
