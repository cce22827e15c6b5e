"""The public call: checks, then the three questions one after another."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.affinity import dot_form, hide_keys
from ndgpa.attend import pick, pick_far, skips_hidden_keys
from ndgpa.attend.far_field import FAR, FarField
from ndgpa.selection import Problem, Rule, Selection, TopK
from ndgpa.structures import SpatialStructure


def gpa(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    structure: SpatialStructure,
    rule: Rule | int,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: str = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    far: str | None = None,
    backend: str | None = None,
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
        far: What a cell does not select: None leaves it out; "block" and "site" let it take part
            through the means of its blocks, asked by the mean query of a block or by each site's
            own (docs/far_field.md).
        backend: "reference", "torch" or "triton"; None picks the best one.

    Returns:
        The output, in the dtype of `query`; 0 for a query that sees nothing. Under autocast the
        inputs are cast first, as `scaled_dot_product_attention` does.

    Raises:
        ValueError, TypeError: An argument does not fit the others; nothing has been computed.
    """
    selection = select(
        query,
        key,
        structure,
        rule,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
    )
    return attend(
        query,
        key,
        value,
        selection,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
        far=far,
        backend=backend,
    )


def select(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    structure: SpatialStructure,
    rule: Rule | int,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: str = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
) -> Selection:
    """Phase 1: find the key blocks that each cell of queries reads.

    Arguments and errors as for `gpa`. The relevance is computed in float32 or wider, whatever the
    dtype of the inputs.
    """
    key_structure = structure if key_structure is None else key_structure
    _checks.rule_or_count(rule)
    rule = TopK(rule) if isinstance(rule, int) else rule
    _checks.query_and_key(query, key, structure, key_structure, affinity, causal)
    _checks.key_mask(key_mask, key)
    _checks.scale(scale)
    same = key_structure is structure
    structure = structure.to(query.device)
    key_structure = structure if same else key_structure.to(query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(query):
        return rule.select(
            Problem(query, key, structure, key_structure, scale, affinity, causal, key_mask)
        )


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: str = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    far: str | None = None,
    backend: str | None = None,
    return_lse: bool = False,
) -> Any:  # a Tensor; a pair of them with return_lse
    """Phase 2: attend from every site to the blocks that its cell selected.

    Arguments and errors as for `gpa`.

    Args:
        selection: From `select`, or ids of one's own.
        return_lse: Also return the log-sum-exp of the logits of each query, (b, h, n), float32 or
            wider, -inf for a query that sees nothing. It has a gradient.
    """
    key_structure = structure if key_structure is None else key_structure
    _checks.query_and_key(query, key, structure, key_structure, affinity, causal)
    _checks.value_for(key, value)
    _checks.key_mask(key_mask, key)
    _checks.scale(scale)
    _checks.selection_for(selection, query, key, structure)
    if far is not None:
        _checks.one_of("far", far, FAR)
        pick_far(backend)
    structure, key_structure = structure.to(query.device), key_structure.to(query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = cast_for_autocast(query, key, value)
    run = pick(backend, query, value)
    field = None
    with without_autocast(query):
        if key_mask is not None and not (skips_hidden_keys(run) and affinity == "dot"):
            unseen = ~key_mask[:, None, :, None]
            key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
        if far is not None:
            problem = Problem(
                query, key, structure, key_structure, scale, affinity, causal, key_mask
            )
            field = FarField.of(far, problem, value)
        bias, dot_scale = dot_form(key, affinity, scale)
        out, lse = run(
            query,
            key,
            value,
            selection,
            structure,
            key_structure,
            scale=dot_scale,
            key_bias=hide_keys(bias, key, key_mask),
            causal=causal,
        )
        if field is not None:
            out, lse = field.merge((out, lse), selection, pick_far(backend))
        if return_lse and affinity == "euclidean":
            lse = lse - scale * query.to(lse.dtype).square().sum(dim=-1)
    return (out, lse) if return_lse else out
