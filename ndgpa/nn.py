"""Attention as a layer: projections around an operator."""

from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa.operators import GPA, Operator
from ndgpa.operators.base import Attends, masks_to_pass_on
from ndgpa.structures import SpatialStructure


class SpatialAttention(nn.Module, Attends):
    """Apply multi-head attention over a space: self-attention, or cross-attention to a context.

    Args:
        query_dim: Features of `x`, and of the queries of all heads together.
        heads: The number of heads; divides `query_dim` and `value_dim`.
        key_dim: Features of the context; None means `query_dim`.
        value_dim: Features of the values of all heads together; None means `query_dim`.
        out_dim: Features of the output; None means `query_dim`.
        operator: The attention, e.g. `GPA(12)` or `Full()`. An operator that is a module becomes a
            submodule.
        key_heads: The number of heads of keys and values; divides `heads`. None means `heads`.

    To export a model, keep the structure as an attribute of the module that calls this one:
    `torch.export` accepts only tensors and plain numbers as inputs.

    Raises:
        ValueError: A width is below 1, or the heads do not divide it.
        TypeError: `operator` is not an operator.
    """

    def __init__(
        self,
        query_dim: int,
        heads: int = 1,
        key_dim: int | None = None,
        value_dim: int | None = None,
        out_dim: int | None = None,
        operator: Operator = GPA(12),  # noqa: B008 (frozen)
        key_heads: int | None = None,
    ) -> None:
        super().__init__()
        key_dim = query_dim if key_dim is None else key_dim
        value_dim = query_dim if value_dim is None else value_dim
        out_dim = query_dim if out_dim is None else out_dim
        key_heads = heads if key_heads is None else key_heads
        _check_widths(query_dim, heads, key_dim, value_dim, out_dim)
        _check_key_heads(heads, key_heads)
        self.heads, self.key_heads = heads, key_heads
        self.operator = operator
        self.to_query = nn.Linear(query_dim, query_dim, bias=False)
        self.to_key = nn.Linear(key_dim, query_dim // heads * key_heads, bias=False)
        self.to_value = nn.Linear(key_dim, value_dim // heads * key_heads, bias=False)
        self.to_out = nn.Linear(value_dim, out_dim)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "operator":
            _check_operator(value)
            if not isinstance(value, nn.Module):
                self._modules.pop(name, None)  # else the former operator would stay a submodule
        super().__setattr__(name, value)

    def forward(
        self,
        x: Float[Tensor, "b n query_dim"],
        structure: SpatialStructure,
        context: Float[Tensor, "b n_k key_dim"] | None = None,
        context_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n out_dim"]:
        """Attend from `x` to the context, or to `x` itself where there is none.

        Args:
            x: Features of the sites of `structure`.
            structure: The space of `x`.
            context: Features of the sites of `context_structure`.
            context_structure: The space of the context; None means `structure`.
            key_mask: True where a site of the context is seen.
            query_mask: True where a site of `x` takes part in what queries share; see `Operator`.
        """
        context = x if context is None else context
        _check_input("x", x, self.to_query.in_features)
        _check_input("context", context, self.to_key.in_features)
        query, key, value = (
            rearrange(y, "b n (h d) -> b h n d", h=h)
            for y, h in (
                (self.to_query(x), self.heads),
                (self.to_key(context), self.key_heads),
                (self.to_value(context), self.key_heads),
            )
        )
        masks = masks_to_pass_on(key_mask, query_mask)
        out = self.operator(query, key, value, structure, context_structure, **masks)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, operator={self.operator}"


def _check_widths(query_dim: int, heads: int, key_dim: int, value_dim: int, out_dim: int) -> None:
    arguments.positive_count("heads", heads)
    for name, width in (
        ("query_dim", query_dim),
        ("key_dim", key_dim),
        ("value_dim", value_dim),
        ("out_dim", out_dim),
    ):
        arguments.positive_count(name, width)
    for name, width in (("query_dim", query_dim), ("value_dim", value_dim)):
        if width % heads:
            raise ValueError(f"{name} must be a multiple of the {heads} heads; got {width}")


def _check_key_heads(heads: int, key_heads: int) -> None:
    arguments.positive_count("key_heads", key_heads)
    if heads % key_heads:
        raise ValueError(f"heads must be a multiple of the {key_heads} key heads; got {heads}")


def _check_input(name: str, x: Tensor, width: int) -> None:
    if x.ndim == 3 and x.shape[-1] == width:
        return
    hint = ""
    if x.ndim > 3 and x.shape[-1] == width:
        hint = f"; flatten the grid with {name}.flatten(1, -2)"
    elif x.ndim > 3 and x.shape[1] == width:
        hint = f"; flatten the grid with {name}.flatten(2).mT"
    raise ValueError(f"{name} must have shape (batch, sites, {width}); got {tuple(x.shape)}{hint}")


def _check_operator(operator: Any) -> None:
    if isinstance(operator, type) or not callable(operator):
        raise TypeError(f"operator must be an operator, such as GPA(12); got {operator!r}")
