"""The public call: checks, then the three questions one after another."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.attention import (
    Backend,
    BackendName,
    pick,
    pick_far,
    pick_tokens,
    reading_far_keys,
    skips_hidden_keys,
)
from ndgpa.attention.far_beside import read_alone
from ndgpa.attention.far_cells import FarCells
from ndgpa.attention.far_field import BlockMeans, Bundles, Far, FarField, as_bundles
from ndgpa.attention.tokens import Tokens
from ndgpa.problem import (
    Affinity,
    Problem,
    Selection,
    check_selection,
    dot_form,
    hide_keys,
)
from ndgpa.selection import Rule, TopK
from ndgpa.structures import Sampling, SpatialStructure


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
        backend: "reference", "torch" or "triton"; None picks the best one.

    Returns:
        The output, in the dtype of `query`; 0 for a query that sees nothing. Under autocast the
        inputs are cast first, as `scaled_dot_product_attention` does.

    Raises:
        ValueError, TypeError: An argument does not fit the others; nothing has been computed.
    """
    rule = as_rule(rule)
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
    check_backend(backend, far, query, value)
    return _attend(problem, value, _select(problem, rule), read, far, backend)[0]


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
) -> Selection:
    """Phase 1: find the key blocks that each cell of queries reads.

    Arguments and errors as for `gpa`. The relevance is computed in float32 or wider, whatever the
    dtype of the inputs.
    """
    rule = as_rule(rule)
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
    return _select(problem, rule)


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
    check_backend(backend, far, query, value)
    out, lse = _attend(problem, value, selection, read, far, backend)
    return (out, lse) if return_lse else out


def as_rule(rule: Rule | int) -> Rule:
    """Return the rule itself; an int k means `TopK(k)`."""
    if not isinstance(rule, Rule | int):
        raise TypeError(f"rule must be a Rule or an int; got {type(rule).__name__}")
    return TopK(rule) if isinstance(rule, int) else rule


def _select(problem: Problem, rule: Rule) -> Selection:
    with without_autocast(problem.query):
        return rule.select(problem.without_tokens)


def _attend(
    problem: Problem,
    value: Tensor,
    selection: Selection,
    read: Sampling | None,
    far: Far | Bundles | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    query, key, value = cast_for_autocast(problem.query, problem.key, value)
    run = pick(backend, query, value)
    problem = replace(problem, query=query, key=key)
    return attend_near_and_far(run, problem, value, selection, sites_read_by(read), far, backend)


def sites_read_by(read: Sampling | None) -> Callable[[SpatialStructure], Tensor | None]:
    """Return what lists the sites that are read of each block; None where they are its own."""
    return lambda keys: None if read is None else read.sites(keys)


def attend_near_and_far(
    run: Backend,
    problem: Problem,
    value: Tensor,  # (b, hk, n_k, dv)
    selection: Selection,
    sites_of: Callable[[SpatialStructure], Tensor | None],
    far: Far | Bundles | None,
    backend: str | None,
    means_of: Callable[..., BlockMeans] = BlockMeans.of,
    alone: Backend | None = None,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    """Attend with a backend to what is selected, and to the far field; return log-sum-exps too.

    Args:
        sites_of: Lists the sites that are read of each block of the keys, as `sites_read_by`.
        backend: The name of the backend, by which that of the far field is picked.
        means_of: Takes the means of the blocks, as `BlockMeans.of` does.
        alone: The backend that reads far keys, where `run` cannot read them beside its blocks.
    """
    query, key, mask = problem.query, problem.key, problem.key_mask
    with without_autocast(query):
        if mask is not None and not (skips_hidden_keys(run) and problem.affinity == "dot"):
            unseen = ~mask[:, None, :, None]
            key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
        problem = replace(problem, query=query, key=key)
        bias, scale = dot_form(key, problem.affinity, problem.scale)
        bias = hide_keys(bias, key, mask)
        tokens = Tokens.of(problem, value, bias)
        sites, site_value, site_bias = tokens.sites
        key_sites = sites_of(sites.key_structure)
        bundles = None if far is None else as_bundles(far)
        field = cells = means = None
        if far is not None and (bundles is None or alone is not None):
            means = means_of(sites, site_value, key_sites)
        if means is not None and bundles is None:
            field = FarField.of(sites, means)
        if bundles is not None:
            cells = FarCells(bundles, sites, selection, key_sites)
        if cells is not None and alone is None:
            run = partial(reading_far_keys(run), far=cells)
        near = run(
            sites.query,
            sites.key,
            site_value,
            selection,
            sites.structure,
            sites.key_structure,
            scale=scale,
            key_bias=site_bias,
            key_sites=key_sites,
            causal=problem.causal,
        )
        if field is not None:
            near = field.merge(near, selection, pick_far("site", backend))
        if cells is not None and means is not None and alone is not None:
            options = sites.structure, cells, means, scale, problem.causal
            besides = read_alone(alone, sites.query, sites.key, *options)
            near = pick_far("site", backend).merge(*near, *besides, problem.causal)
        out, lse = tokens.complete(near, scale, pick_tokens(backend, run))
        if problem.affinity == "euclidean":
            lse = lse - problem.scale * query.to(lse.dtype).square().sum(dim=-1)
    return out, lse


def check_backend(
    backend: str | None, far: Far | Bundles | None, query: Tensor, value: Tensor
) -> None:
    if far is not None:
        pick_far(far, backend)
    pick(backend, query, value)


def check_read(read: Any) -> None:
    if read is not None and not isinstance(read, Sampling):
        raise TypeError(
            f"read must be a sampling, such as ndgpa.structures.Strided(2); got {read!r}"
        )
