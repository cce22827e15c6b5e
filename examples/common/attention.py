"""Attention by name, for all examples.

A name is a call of an operator as one would write it in Python, such as `Neighborhood(7)`,
`GPA(12, far="block")` or `GPA(Refine(TopK(48), 12), far=Bundles(32))`; quotes around words may be
left out. An example may have short names besides.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import ndgpa
from examples.common.untrusted import BadInput
from ndgpa.operators import (
    Hydra,
    LocalSparse,
    MultiAxis,
    Neighborhood,
    NoAttention,
    Nystrom,
    Operator,
    Performer,
)

LONGEST = 200  # characters of a name
SHORT_NAMES: dict[str, str] = {}  # of an example that has none
OPERATORS: dict[str, Callable[..., Operator]] = {
    "GPA": ndgpa.GPA,
    "Full": ndgpa.Full,
    "NoAttention": NoAttention,
    "MultiAxis": MultiAxis,
    "LocalSparse": LocalSparse,
    "Neighborhood": Neighborhood,
    "Hydra": Hydra.of,
    "Nystrom": Nystrom,
    "Performer": Performer,
}
PARTS: dict[str, Callable[..., Any]] = {
    "TopK": ndgpa.TopK,
    "TopP": ndgpa.TopP,
    "TopRatio": ndgpa.TopRatio,
    "MultiLevel": ndgpa.MultiLevel,
    "Propagate": ndgpa.Propagate,
    "Refine": ndgpa.Refine,
    "Own": ndgpa.Own,
    "StraightThrough": ndgpa.StraightThrough,
    "PerturbedTopK": ndgpa.PerturbedTopK,
    "SoftTopK": ndgpa.SoftTopK,
    "Bundles": ndgpa.Bundles,
    "Strided": ndgpa.structures.Strided,
}


def operator_of(
    name: str, short_names: Mapping[str, str] = SHORT_NAMES, **options: Any
) -> Operator:
    """Make the operator that a name stands for.

    Args:
        short_names: Names of the example's own, each for a call.
        options: What the example sets for every operator that has such an option, unless the name
            says otherwise.

    Raises:
        BadInput: It is no call of a known operator with plain values, rules and `Bundles`, or the
            operator refuses them.
    """
    call = short_names.get(name, name)
    try:
        make = _made_by(_parsed(call), OPERATORS, options)
    except (SyntaxError, LookupError, ValueError):
        raise BadInput(f"unknown attention {name!r}; expected {_expected(short_names)}") from None
    try:
        return make()
    except (TypeError, ValueError) as problem:
        raise BadInput(f"attention {name!r}: {problem}") from None


def folder_name(name: str) -> str:
    """Write a name with letters, digits and underscores alone."""
    return re.sub(r"\W+", "_", name).strip("_")


def _expected(short_names: Mapping[str, str]) -> str:
    own = f"one of {', '.join(short_names)}, or " if short_names else ""
    return f"{own}a call of {', '.join(OPERATORS)}, such as GPA(12, far=block)"


def _parsed(call: str) -> ast.expr:
    if len(call) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    return ast.parse(call if "(" in call else f"{call}()", mode="eval").body


def _made_by(
    node: ast.expr, known: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]
) -> Callable[[], Any]:
    """Read a call; nothing is made before all of it is known to be one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("no call of a name")
    make = known[node.func.id]
    values = [_value(x) for x in node.args]
    named = {str(x.arg): _value(x.value) for x in node.keywords}
    unset = {*list(inspect.signature(make).parameters)[len(values) :]} - named.keys()
    set_here = {key: x for key, x in options.items() if key in unset}
    return lambda: make(*(x() for x in values), **{k: x() for k, x in named.items()}, **set_here)


def _value(node: ast.expr) -> Callable[[], Any]:
    if isinstance(node, ast.Call):
        return _made_by(node, PARTS, {})
    value = node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
    return lambda: value
