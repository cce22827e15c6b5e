"""Words for bad arguments: the checks that many share; all others stand with who raises."""

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Numbers


def positive_count(name: str, value: Any) -> None:
    """Refuse what is not an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def at_most(name: str, value: int, limit: int, of: str) -> None:
    """Refuse what is not an int from 1 to the number of what there is."""
    positive_count(name, value)
    if value > limit:
        raise ValueError(f"{name} must be at most {limit}, the number of {of}; got {value}")


def bounds(at_least: Any, at_most: Any) -> None:
    """Refuse counts that are no range; None as `at_most` is no limit."""
    positive_count("at_least", at_least)
    if at_most is None:
        return
    positive_count("at_most", at_most)
    if at_most < at_least:
        raise ValueError(f"at_most {at_most} is less than at_least {at_least}")


def positive(name: str, value: Any) -> None:
    """Refuse what is not a finite number above 0."""
    _number(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite; got {value}")


def share_of(name: str, value: Any) -> None:
    """Refuse what is not a part of a whole: more than nothing, at most everything."""
    _number(name, value)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1]; got {value}")


def below_one(name: str, value: Any) -> None:
    """Refuse what does not lie in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value}")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")


# Sizes of blocks and cells


def ints(name: str, value: Any) -> tuple[int, ...]:
    """Give one int or several as a tuple."""
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError(f"{name} must be an int or a tuple of ints; got {value!r}")
    return values


def one_factor(name: str, value: Any) -> int:
    """Give a factor that counts members, so a single int."""
    factors = ints(name, value)
    if len(factors) != 1 or factors[0] < 1:
        raise ValueError(
            f"{name} must be one int of at least 1 for a structure that is not a Grid; got {value}"
        )
    return factors[0]


def factors(name: str, value: Any, axes: tuple[int, ...], of: str) -> tuple[int, ...]:
    """Give one factor for each axis of a grid, none longer than its axis."""
    factors = ints(name, value)
    if isinstance(value, int):
        factors = factors * len(axes)
    if len(factors) != len(axes):
        raise ValueError(f"{name} has {len(factors)} entries but the grid has {len(axes)} axes")
    for axis, (factor, size) in enumerate(zip(factors, axes)):
        if factor < 1:
            raise ValueError(f"{name} must be at least 1; got {factor} for axis {axis}")
        if factor > size:
            raise ValueError(f"{name} {factor} is larger than axis {axis}, which has {size} {of}")
    return factors


def counts(sites: int, block: Any, cell: Any) -> None:
    """Refuse numbers of sites of a block and blocks of a cell that do not fit the sites."""
    positive_count("block", block)
    positive_count("cell", cell)
    if block > sites:
        raise ValueError(f"block {block} is larger than the number of sites, {sites}")
    blocks = -(-sites // block)
    if cell > blocks:
        raise ValueError(f"cell {cell} is larger than the number of blocks, {blocks}")


# Tensors


def int_tensor(name: str, x: Any) -> None:
    """Refuse what is not an int32 or int64 tensor."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be an int32 or int64 tensor; got {got}")


def int_vector(name: str, vector: Any) -> None:
    """Refuse what is not a tensor of one axis and an integer dtype."""
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(vector).__name__}")
    if vector.dtype.is_floating_point or vector.dtype.is_complex or vector.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype; got {vector.dtype}")
    if vector.ndim != 1:
        raise ValueError(f"{name} must have one axis; got shape {tuple(vector.shape)}")


def int_vector_of(name: str, vector: Any, length: int, of: str) -> None:
    """Refuse what is neither None nor an int for each of what there is."""
    if vector is None:
        return
    int_vector(name, vector)
    if len(vector) != length:
        raise ValueError(f"{name} has {len(vector)} entries but there are {length} {of}")


# Words and packages


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {listed(choices, repr)}")


def listed(items: Iterable[Any], form: Any = str) -> str:
    """Join items with commas."""
    return ", ".join(form(item) for item in items)


def needs(who: str, module: str, extra: str) -> None:
    """Refuse to go on without a package, and name the extra that installs it."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{who} needs {module}; install it with: pip install 'ndgpa[{extra}]'")
