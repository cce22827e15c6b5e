"""Attention as a layer: projections around an operator."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa.attention.scores import Scores
from ndgpa.cache import Cache
from ndgpa.operators import GPA, Operator
from ndgpa.operators.base import Attends, masks_to_pass_on
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import grid_shape

Hook = Callable[[Tensor, int], Tensor]
ScoresOf = Callable[[SpatialStructure, SpatialStructure | None], Scores]


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
        bias: Whether queries, keys and values are projected with a bias.
        dropout: The share of output features set to 0 in training. (Weights are not dropped: the
            kernels do not hold them.)
        query_hook, key_hook: Called as hook(x, first) with queries or keys (batch, heads, sites,
            features), whose first site has the number `first` (0 but in `decode`); return what to
            attend with, of the same shape: a norm, rotary embeddings. A module becomes a submodule.
        scores: Called as scores(structure, context_structure) at each call; returns what happens to
            the scores, such as a learnt `OffsetBias`. A module becomes a submodule.
        grid: Whether `x` and the context come, and the output goes, as (batch, *grid, features).

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
        *,
        bias: bool = False,
        dropout: float = 0.0,
        query_hook: Hook | None = None,
        key_hook: Hook | None = None,
        scores: ScoresOf | None = None,
        grid: bool = False,
    ) -> None:
        super().__init__()
        key_dim = query_dim if key_dim is None else key_dim
        value_dim = query_dim if value_dim is None else value_dim
        out_dim = query_dim if out_dim is None else out_dim
        key_heads = heads if key_heads is None else key_heads
        _check_widths(query_dim, heads, key_dim, value_dim, out_dim)
        _check_key_heads(heads, key_heads)
        _check_hook("query_hook", query_hook)
        _check_hook("key_hook", key_hook)
        _check_scores(scores)
        arguments.below_one("dropout", dropout)
        self.heads, self.key_heads, self.grid = heads, key_heads, grid
        self.operator = operator
        self.query_hook, self.key_hook, self.scores = query_hook, key_hook, scores
        self.to_query = nn.Linear(query_dim, query_dim, bias=bias)
        self.to_key = nn.Linear(key_dim, query_dim // heads * key_heads, bias=bias)
        self.to_value = nn.Linear(key_dim, value_dim // heads * key_heads, bias=bias)
        self.to_out = nn.Linear(value_dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "operator":
            _check_operator(value)
            if not isinstance(value, nn.Module):
                self._modules.pop(name, None)  # else the former operator would stay a submodule
        super().__setattr__(name, value)

    def forward(
        self,
        x: Float[Tensor, "b *n query_dim"],
        structure: SpatialStructure,
        context: Float[Tensor, "b *n_k key_dim"] | None = None,
        context_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b *n out_dim"]:
        """Attend from `x` to the context, or to `x` itself where there is none.

        Args:
            x: Features of the sites of `structure`.
            structure: The space of `x`.
            context: Features of the sites of `context_structure`.
            context_structure: The space of the context; None means `structure`.
            key_mask: True where a site of the context is seen.
            query_mask: True where a site of `x` takes part in what queries share; see `Operator`.
        """
        shape = x.shape[:-1]
        if self.grid:
            x = _flatten("x", x, "structure", structure)
            if context is not None:
                place = structure if context_structure is None else context_structure
                context = _flatten("context", context, "context_structure", place)
        query, key, value = self.project(x, context)
        options: dict[str, Any] = masks_to_pass_on(key_mask, query_mask)
        if self.scores is not None:
            options["scores"] = self.scores(structure, context_structure)
        out = self.operator(query, key, value, structure, context_structure, **options)
        return self._join(out).view(*shape, -1)

    def project(
        self,
        x: Float[Tensor, "b n query_dim"],
        context: Float[Tensor, "b n_k key_dim"] | None = None,
        first: int = 0,
    ) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b hk n_k d"], Float[Tensor, "b hk n_k dv"]]:
        """Return the queries, keys and values that the operator is called with.

        `ndgpa.analysis` has the weights of an attention from them: `key_weights`, `coverage`.

        Args:
            x, context: As for the call; flat, where that is a grid.
            first: The number of the first site, which the hooks are told.
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
        query = query if self.query_hook is None else self.query_hook(query, first)
        key = key if self.key_hook is None else self.key_hook(key, first)
        return query, key, value

    def _join(self, out: Tensor) -> Tensor:  # (b, h, n, d) -> (b, n, out_dim)
        joined: Tensor = self.dropout(self.to_out(rearrange(out, "b h n d -> b n (h d)")))
        return joined

    def decode(
        self,
        x: Float[Tensor, "b m query_dim"],
        cache: Cache,
        *,
        key_mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m out_dim"]:
        """Append the next sites to a cache and attend from them: the layer's causal output.

        Args:
            x: Features of the newest sites.
            cache: Holds the keys and values of the sites before, one cache for each layer. The
                rule, scale and affinity are those of the cache; the operator is not asked.
            key_mask: True where a site exists; see `Cache.append`.

        Raises:
            NotImplementedError: The layer changes its scores, which a cache does not know.
        """
        if self.scores is not None:
            raise NotImplementedError("a cache does not change scores; decode without scores=")
        query, key, value = self.project(x, first=cache.length)
        cache.append(key, value, key_mask)
        return self._join(cache.attend(query))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, operator={self.operator}"


class OffsetBias(nn.Module):
    """Learn a bias for each head and relative position on a grid, as Swin and T5 do.

    Pass it to `SpatialAttention` as `scores`; see `ndgpa.Scores` for what it adds.

    Args:
        heads: The number of heads; 1 serves all.
        reach: How far offsets are told apart along each axis of the grid, one int for each (an int
            is one axis); farther ones share the bias at the reach. One less than the size of the
            largest grid tells all apart.
        softcap: As for `ndgpa.Scores`.

    Raises:
        ValueError, TypeError: A number is below 1, or of a wrong type.
    """

    def __init__(
        self, heads: int, reach: int | tuple[int, ...], softcap: float | None = None
    ) -> None:
        super().__init__()
        arguments.positive_count("heads", heads)
        self.reach = arguments.ints("reach", reach)
        for far in self.reach:
            arguments.positive_count("reach", far)
        self.softcap = softcap
        self.weight = nn.Parameter(torch.zeros(heads, *(2 * far + 1 for far in self.reach)))

    def forward(
        self, structure: SpatialStructure, key_structure: SpatialStructure | None = None
    ) -> Scores:
        """Spread the biases over the offsets of two grids; None means the same grid."""
        keys = structure if key_structure is None else key_structure
        shape = grid_shape("OffsetBias", "structure", structure.inner)
        key_shape = grid_shape("OffsetBias", "key_structure", keys.inner)
        if not len(shape) == len(key_shape) == len(self.reach):
            raise ValueError(
                f"reach has {len(self.reach)} axes but the grids have {len(shape)} and "
                f"{len(key_shape)}"
            )
        table: Tensor = self.weight
        for axis, (n, m, far) in enumerate(zip(shape, key_shape, self.reach), start=1):
            offset = torch.arange(1 - n, m, device=table.device).clamp(-far, far)
            table = table.index_select(axis, offset + far)
        return Scores(offset_bias=table, softcap=self.softcap)

    def extra_repr(self) -> str:
        return f"heads={len(self.weight)}, reach={self.reach}"


def _flatten(name: str, x: Tensor, place: str, structure: SpatialStructure) -> Tensor:
    """Put the sites of a grid in a row."""
    shape = grid_shape("SpatialAttention(grid=True)", place, structure)
    if tuple(x.shape[1:-1]) != shape:
        raise ValueError(
            f"{name} must have shape (batch, *{shape}, features) on this grid; got {tuple(x.shape)}"
        )
    return x.flatten(1, -2)


def _check_hook(name: str, hook: Any) -> None:
    if hook is not None and not callable(hook):
        raise TypeError(f"{name} must be called as {name}(x, first); got {hook!r}")


def _check_scores(scores: Any) -> None:
    if scores is not None and (isinstance(scores, Scores) or not callable(scores)):
        raise TypeError(
            "scores must be called as scores(structure, context_structure), such as OffsetBias; "
            f"got {type(scores).__name__}"
        )


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
