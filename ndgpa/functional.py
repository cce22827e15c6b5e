"""The public call: checks, then the three questions one after another."""

from dataclasses import replace
from typing import Any, Literal, get_args, overload

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.attention import BackendName
from ndgpa.attention.far_field import Bundles, Far
from ndgpa.attention.near_and_far import (
    attend_near_and_far,
    check_backend,
    check_read,
    pick_for,
    sites_read_by,
)
from ndgpa.attention.scores import Scores, check_scores, with_key_bias
from ndgpa.problem import Affinity, Problem, Selection, check_selection
from ndgpa.selection import Rule, TopK
from ndgpa.structures import Sampling, SpatialStructure

Layout = Literal["bhnd", "bnhd"]


def gpa(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    structure: SpatialStructure,
    rule: Rule | int,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    read: Sampling | None = None,
    far: Far | Bundles | None = None,
    scores: Scores | None = None,
    layout: Layout = "bhnd",
    backend: BackendName | str | None = None,
) -> Float[Tensor, "b h n dv"]:
    """Grid Partitioned Attention: select key blocks at a low resolution, attend at the full one.

    Source: Algorithm 1 of Jetchev et al. 2021, "Grid Partitioned Attention".

    Args:
        query, key, value: Of one floating dtype and on one device, laid out as in
            `scaled_dot_product_attention`; the heads of key divide those of query.
        structure: The space of the queries.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        key_structure: The space of the keys; None means the same as `structure`.
        scale: Factor of the affinity; None means 1/sqrt(d). The paper's own is 1.
        affinity: "dot" for scale q.k (the paper's text), "euclidean" for -scale |q-k|^2 (its
            released code).
        causal: A site sees only sites of its own or an earlier time (of `structure.time`).
        key_mask: True where a key is seen; a key that is not seen does not exist.
        query_mask: (batch, n), True where a query takes part in the selection; None means all, but
            in self-attention (queries and keys on one structure) where a key is seen: padding has
            no say. Pass ones where hidden sites ask too, as the gaps of a recording do.
        read: Which sites are read where a block is selected, e.g. `ndgpa.structures.Strided(2)`;
            None means the sites of the block.
        far: How the blocks that a cell does not select take part in the softmax, each through the
            mean of what would be read (docs/far_field.md): "site" as one key for each block;
            "block" as 16 keys for each cell, the means of bundles of similar blocks, of which
            `Bundles` says how many. None leaves them out.
        scores: What happens to scores before the softmax, such as a bias for each relative position
            or a soft cap; None means nothing.
        layout: "bhnd", or "bnhd" for tensors that come, and an output that goes, as (batch, sites,
            heads, features); only strides change.
        backend: "reference", "torch" or "triton"; None picks the best one.

    Returns:
        The output, in the dtype of `query`; 0 for a query that sees nothing. Under autocast the
        inputs are cast first, as `scaled_dot_product_attention` does.

    Raises:
        ValueError, TypeError: An argument does not fit the others; nothing has been computed.
    """
    rule = as_rule(rule)
    query, key, value = _by_head(layout, query, key, value)
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
        query_mask=query_mask,
        value=value,
    )
    check_read(read)
    check_scores(scores, problem, far, backend)
    check_backend(backend, far, query, value)
    selection = _select(problem, rule, scores)
    out, _ = _attend(problem, value, selection, read, far, scores, backend)
    return _by_head(layout, out)[0]


def select(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    structure: SpatialStructure,
    rule: Rule | int,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    scores: Scores | None = None,
    layout: Layout = "bhnd",
) -> Selection:
    """Phase 1: find the key blocks that each cell of queries reads.

    Arguments and errors as for `gpa`. The relevance is computed in float32 or wider, whatever the
    dtype of the inputs.
    """
    rule = as_rule(rule)
    query, key = _by_head(layout, query, key)
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
        query_mask=query_mask,
    )
    check_scores(scores, problem, None, None)
    return _select(problem, rule, scores)


@overload
def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    read: Sampling | None = None,
    far: Far | Bundles | None = None,
    scores: Scores | None = None,
    layout: Layout = "bhnd",
    backend: BackendName | str | None = None,
    return_lse: Literal[False] = False,
) -> Float[Tensor, "b h n dv"]: ...


@overload
def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    read: Sampling | None = None,
    far: Far | Bundles | None = None,
    scores: Scores | None = None,
    layout: Layout = "bhnd",
    backend: BackendName | str | None = None,
    return_lse: Literal[True],
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]: ...


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    read: Sampling | None = None,
    far: Far | Bundles | None = None,
    scores: Scores | None = None,
    layout: Layout = "bhnd",
    backend: BackendName | str | None = None,
    return_lse: bool = False,
) -> Any:
    """Phase 2: attend from every site to the blocks that its cell selected.

    Arguments and errors as for `gpa`.

    Args:
        selection: From `select`, or ids of one's own.
        query_mask: As for `gpa`; checked, and nothing depends on it.
        return_lse: Also return the log-sum-exp of the logits of each query, (b, h, n), float32 or
            wider, -inf for a query that sees nothing. It has a gradient.
    """
    query, key, value = _by_head(layout, query, key, value)
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
        query_mask=query_mask,
        value=value,
    )
    check_selection(selection, query, key, structure)
    check_read(read)
    check_scores(scores, problem, far, backend)
    check_backend(backend, far, query, value)
    out, lse = _attend(problem, value, selection, read, far, scores, backend)
    out = _by_head(layout, out)[0]
    return (out, lse) if return_lse else out


def as_rule(rule: Rule | int) -> Rule:
    """Return the rule itself; an int k means `TopK(k)`."""
    if not isinstance(rule, Rule | int):
        raise TypeError(f"rule must be a Rule or an int; got {type(rule).__name__}")
    return TopK(rule) if isinstance(rule, int) else rule


def _by_head(layout: str, *xs: Any) -> tuple[Any, ...]:
    """Swap heads and sites where they do not come, or shall not go, as (b, h, n, d)."""
    arguments.one_of("layout", layout, get_args(Layout))
    if layout == "bhnd":
        return xs
    return tuple(x.transpose(1, 2) if isinstance(x, Tensor) and x.ndim == 4 else x for x in xs)


def _select(problem: Problem, rule: Rule, scores: Scores | None) -> Selection:
    with without_autocast(problem.query):
        problem = with_key_bias(problem, None if scores is None else scores.key_bias)
        return rule.select(problem.without_tokens)


def _attend(
    problem: Problem,
    value: Tensor,
    selection: Selection,
    read: Sampling | None,
    far: Far | Bundles | None,
    scores: Scores | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    query, key, value = cast_for_autocast(problem.query, problem.key, value)
    run = pick_for(backend, query, value, scores)
    problem, sites_of = replace(problem, query=query, key=key), sites_read_by(read)
    return attend_near_and_far(
        run, problem, value, selection, sites_of, far, backend, scores=scores
    )
