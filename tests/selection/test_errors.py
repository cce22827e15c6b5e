"""Options that make no rule are refused, in one sentence."""

import functools
import re
from typing import Any

import pytest
import torch

import ndgpa

pytestmark = pytest.mark.bad_input

SEQUENCE = ndgpa.Sequence(12, 3)


def features(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(shape or (1, 2, 12, 4), **options)


RULES: list[tuple[Any, type[Exception], str]] = [
    (lambda: ndgpa.TopK(0), ValueError, "k must be at least 1; got 0"),
    (lambda: ndgpa.TopK(2.5), TypeError, "k must be an int; got 2.5"),
    (lambda: ndgpa.TopK(2, estimate="box"), ValueError, "unknown estimate 'box'"),
    (
        lambda: ndgpa.TopK(2, relevance="best"),
        ValueError,
        "unknown relevance 'best'; expected one of 'mass', 'logit'",
    ),
    (
        lambda: ndgpa.TopK(2, share="none"),
        ValueError,
        "unknown share 'none'; expected one of 'head', 'group', 'all'",
    ),
    (
        lambda: ndgpa.MultiLevel((2, 2), factor=[2, 2]),
        TypeError,
        r"factor must be an int or a tuple of ints; got \[2, 2\]",
    ),
    (lambda: ndgpa.MultiLevel((2, 2), (2, 0)), ValueError, "factor must be at least 1"),
    *(
        (
            lambda force=force, rule=rule: rule(force=force),
            TypeError,
            r"force must be a rule, such as Own\(\) or Fixed\(\(0,\)\) \| Window\(1\); got "
            + re.escape(repr(force)),
        )
        for force in ("own", 0, (0, "own"), ())
        for rule in (
            functools.partial(ndgpa.TopK, 2),
            functools.partial(ndgpa.TopP, 0.5),
            functools.partial(ndgpa.TopRatio, 0.5),
            functools.partial(ndgpa.MultiLevel, (2, 2)),
        )
    ),
    (
        lambda: ndgpa.select(
            features(), features(), SEQUENCE, ndgpa.TopK(2, force=ndgpa.Fixed((4,)))
        ),
        ValueError,
        "Fixed names block 4 but key_structure has 4 blocks",
    ),
    (
        lambda: ndgpa.select(
            features(),
            features(1, 2, 10, 4),
            SEQUENCE,
            ndgpa.TopK(2, force=ndgpa.Own()),
            key_structure=ndgpa.Sequence(10, 2),
        ),
        ValueError,
        "own blocks need queries and keys on the same sites; structure has 12 sites but key_str",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), RULES)
def test_what_is_no_rule_is_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()
