"""Attention by name, for all three generators.

A name is a call of an operator as one would write it in Python, such as `GPA(12, far="block")`,
`Neighborhood(7)` or `Full()`; quotes around words may be left out.
"""

import ast
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import ndgpa
from examples.common.untrusted import BadInput

OPERATORS: dict[str, Callable[..., Any]] = {
    "GPA": ndgpa.GPA,
    "Full": ndgpa.Full,
    "NoAttention": ndgpa.operators.NoAttention,
    "MultiAxis": ndgpa.operators.MultiAxis,
    "LocalSparse": ndgpa.operators.LocalSparse,
    "Neighborhood": ndgpa.operators.Neighborhood,
    "Hydra": ndgpa.operators.Hydra.of,
    "Nystrom": ndgpa.operators.Nystrom,
    "Performer": ndgpa.operators.Performer,
}


def operator_of(name: str) -> Any:
    """Make the operator that a name stands for.

    Raises:
        BadInput: It is no call of a known operator with plain values, or the operator refuses them.
    """
    try:
        call = ast.parse(name if "(" in name else f"{name}()", mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        make = OPERATORS[call.func.id]
        values = [_value(x) for x in call.args]
        options = {str(x.arg): _value(x.value) for x in call.keywords}
    except (SyntaxError, AssertionError, KeyError, ValueError):
        known = ", ".join(OPERATORS)
        raise BadInput(
            f"no attention {name!r}: write a call of {known}, such as GPA(12, far=block)"
        ) from None
    try:
        return make(*values, **options)
    except (TypeError, ValueError) as problem:
        raise BadInput(f"attention {name!r}: {problem}") from None


@torch.no_grad()
def read_by(
    operator: Any,
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads k d"],
    structure: ndgpa.SpatialStructure,
    site: int,
    at_once: int = 256,
) -> Float[Tensor, "b heads k"]:
    """Return how much one site reads of each key: what is read where values are the identity.

    Args:
        operator: Any attention.
        site: Number of the query.
        at_once: Columns of the identity.
    """
    identity = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
    read = [
        operator(query, key, part.expand(*key.shape[:2], -1, -1), structure)[:, :, site]
        for part in identity.split(at_once, dim=1)
    ]
    return torch.cat(read, dim=2)


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
