"""Attention by name, and the layer that all three generators share.

A name is a call of an operator as one would write it in Python, such as `GPA(12, far="block")`,
`Neighborhood(7)` or `Full()`; quotes around words may be left out.
"""

import ast
from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

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


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


class Attend(nn.Module):
    """Multi-head attention of sites, with biases, as the systems here have it.

    Args:
        channels: Features of the sites, in and out.
        heads: Query heads.
        operator: The attention.
        key_heads: Heads of keys and values; 1 is HiT's "multi-query".
        context: Features of what is attended to; None means the sites themselves.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        operator: Any,
        key_heads: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        key_heads = heads if key_heads is None else key_heads
        context = channels if context is None else context
        width = channels // heads * key_heads
        self.heads, self.key_heads, self.operator = heads, key_heads, operator
        self.to_query = nn.Linear(channels, channels)
        self.to_key = nn.Linear(context, width)
        self.to_value = nn.Linear(context, width)
        self.to_out = nn.Linear(channels, channels)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        structure: ndgpa.SpatialStructure,
        context: Float[Tensor, "b m e"] | None = None,
        context_structure: ndgpa.SpatialStructure | None = None,
    ) -> Float[Tensor, "b n c"]:
        context = x if context is None else context
        query, key, value = (
            rearrange(y, "b n (h d) -> b h n d", h=h)
            for y, h in (
                (self.to_query(x), self.heads),
                (self.to_key(context), self.key_heads),
                (self.to_value(context), self.key_heads),
            )
        )
        out = self.operator(query, key, value, structure, context_structure)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
