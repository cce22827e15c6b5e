"""Problems of every kind, each from one number: spaces, rules, values, masks, biases, dtypes.

`problem(seed)` is the same problem on every machine. Plain random choices, not hypothesis: a
problem takes a millisecond to draw, and its number is all that is needed to draw it again.
"""

import random
from dataclasses import replace

import torch
from torch import Tensor

import ndgpa
from tests.problems.call import Problem
from tests.problems.rules import Given, a_rule
from tests.problems.spaces import two_spaces

__all__ = ["Given", "Problem", "problem"]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VALUES = ("normal", "large", "huge", "constant", "tied", "padded")


def problem(seed: int, dtypes: tuple[torch.dtype, ...] = DTYPES, sites: int = 40) -> Problem:
    """The problem of that number.

    Args:
        sites: About how many sites a space has at most.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype, values = draw.choice(dtypes), draw.choice(VALUES)
    structure, key_structure, read = two_spaces(draw, generator, sites)
    timed = structure.time is not None and key_structure.time is not None
    batch, key_heads = draw.randint(1, 2), draw.randint(1, 2)
    heads, width = key_heads * draw.randint(1, 2), draw.randint(1, 6)
    keys = key_structure.num_sites
    mask = None
    if draw.random() < 0.3:
        mask = torch.rand((batch, keys), generator=generator) < draw.choice([0.3, 0.7])
    drawn = Problem(
        seed,
        *(
            _values(values, (batch, h, n, d), generator).to(dtype)
            for h, n, d in (
                (heads, structure.num_sites, width),
                (key_heads, keys, width),
                (key_heads, keys, draw.randint(1, 5)),
            )
        ),
        structure,
        key_structure,
        ndgpa.TopK(1),
        draw.choice(["dot", "dot", "euclidean"]),
        draw.choice([None, 1.0, 0.3, -0.5]),
        timed and draw.random() < 0.6,
        mask,
        read,
        values,
    )
    return replace(drawn, rule=a_rule(draw, generator, drawn))


def _values(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Features in float64: of one size or another, or with sites that are equal."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "constant":
        return x[:, :, :1].expand(shape).clone()
    if kind == "tied":
        return x[:, :, torch.randint(0, min(2, shape[2]), (shape[2],), generator=generator)]
    if kind == "padded":
        x[:, :, shape[2] // 2 :] = 0
        return x
    return {"normal": 1, "large": 4, "huge": 16}[kind] * x
