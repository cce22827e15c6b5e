"""The most relevant key blocks of each cell, as one operator."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa._flops import count_products
from ndgpa._ops import call, fold_into_batch, has_triton
from ndgpa.problem import Problem
from ndgpa.selection.base import Rule
from ndgpa.selection.coarse import (
    StandIn,
    by_cell,
    coarse_in_two,
    coarse_level,
    takes_two_parts,
)
from ndgpa.selection.forced import always_read
from ndgpa.selection.ranking import ranked, top_k_lowest_id
from ndgpa.selection.relevance import (
    CoarseCells,
    Relevance,
    Share,
    cell_relevance,
    selection_heads,
)
from ndgpa.selection.slots import ascending, without_blocks
from ndgpa.structures.means import whole

# Features of a head that the kernels take.
WIDEST = 256


def most_relevant(
    problem: Problem,
    k: int,
    relevance: Relevance = "mass",
    share: Share = "head",
    force: Rule | None = None,
    *,
    counts: Int[Tensor, " C"] | None = None,
    p: float | None = None,
    at_least: int = 1,
    estimate: StandIn = "mean",
) -> Int[Tensor, "b hs C K"]:
    """Select the k most relevant key blocks of each cell, and those that are always read.

    If causal, a cell chooses from the blocks that are wholly past at its earliest time, by its
    queries of that time; the blocks that it can see in part are read besides.

    Args:
        k, relevance, share, force: As for `TopK`.
        counts: How many of the k each cell keeps; None means all.
        p: Keep only as many as reach this share of the cell's relevance; None means all.
        at_least: Kept whatever `p` says.
        estimate: What stands for a block, as for `TopK`.

    Returns:
        int32 ids, ascending, -1 in the empty slots, which are last.
    """
    structure, key_structure = problem.structure, problem.key_structure
    batch, heads = problem.query.shape[:2]
    in_kernels = counts is None and p is None and has_triton(problem.query)
    by_mean = estimate == "mean" and takes_two_parts(problem)
    if in_kernels and by_mean and problem.query.shape[-1] <= WIDEST:
        coarse, query, weight = coarse_in_two(problem)
    else:
        coarse = coarse_level(problem, estimate)
        query, weight = by_cell(coarse, structure)
    return call(
        select_top_k,
        query=query.detach(),
        key=coarse.key.detach(),
        bias=None if coarse.bias is None else coarse.bias.detach(),
        log_size=None if coarse.log_size is None else coarse.log_size.expand(batch, -1),
        weight=weight.expand(batch, -1, -1),
        forced=always_read(force, problem, selection_heads(share, heads, problem.key.shape[1])),
        cell_group=structure.cell_group,
        key_group=key_structure.group,
        k=k,
        relevance=relevance,
        share=share,
        scale=coarse.scale,
        cell_time=structure.cell_span[0] if problem.causal else None,
        key_time=key_structure.block_span[1] if problem.causal else None,
        counts=counts,
        p=p,
        at_least=at_least,
    )


# One opaque operator, so that a compiled graph does not unroll the tiles.
@torch.library.custom_op("ndgpa::select_top_k", mutates_args=())
def select_top_k(
    query: Tensor,  # (b, h, C, P, d), or in two parts (b, h, C, P, 2, d) bfloat16
    key: Tensor,  # (b, hk, B, d), or (b, hk, B, 2, d)
    bias: Tensor | None,  # (b, hk, B)
    log_size: Tensor | None,  # (b, B)
    weight: Tensor,  # (b, C, P)
    forced: Tensor | None,  # (b, hs, C, F), read besides, -1 for an empty slot
    cell_group: Tensor | None,  # (C,)
    key_group: Tensor | None,  # (B,)
    k: int,
    relevance: str,
    share: str,
    scale: float,
    cell_time: Tensor | None = None,  # (C,)
    key_time: Tensor | None = None,  # (B,)
    counts: Tensor | None = None,  # (C,)
    p: float | None = None,
    at_least: int = 1,
) -> Tensor:  # (b, hs, C, min(k, B) + F) int32, ascending, empty slots last
    """The most relevant key blocks of each cell, and the forced ones."""
    cells = CoarseCells(
        query=query,
        key=key,
        bias=bias,
        log_size=log_size,
        weight=weight,
        cell_group=cell_group,
        key_group=key_group,
        cell_time=cell_time,
        key_time=key_time,
        scale=scale,
    )
    narrow = query.dtype != torch.float64 and query.shape[-1] <= WIDEST
    if counts is None and p is None and narrow and has_triton(query):
        return select_in_triton(cells, forced, k, relevance, share)
    return select_in_torch(cells, forced, k, relevance, share, counts, p, at_least)


def select_in_torch(
    of: CoarseCells,
    forced: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    counts: Tensor | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Tensor:
    (batch, heads, num_cells), (key_heads, num_blocks) = of.query.shape[:3], of.key.shape[1:3]
    of = replace(of, query=whole(of.query), key=whole(of.key))
    count = selection_heads(share, heads, key_heads)
    width = _width(k, num_blocks, forced)
    out = of.query.new_empty(batch * count, num_cells, width, dtype=torch.int32)
    for rows, cells, scores in cell_relevance(of, relevance, share):
        always = None
        if forced is not None:
            always = forced.flatten(0, 1)[rows, cells]
            scores = without_blocks(scores, always)
        if counts is None and p is None:
            ids = top_k_lowest_id(scores, min(k, num_blocks))
            ids = ids.masked_fill(scores.gather(-1, ids) == -torch.inf, -1)
        else:
            wanted = None if counts is None else counts[cells]
            ids = ranked(scores, min(k, num_blocks), wanted, p, at_least)
        if always is not None:
            ids = torch.cat([ids, always], dim=-1)
        out[rows, cells] = ascending(ids, num_blocks).int()
    return out.unflatten(0, (batch, count))


def select_in_triton(
    of: CoarseCells, forced: Tensor | None, k: int, relevance: str, share: str
) -> Tensor:
    """As `select_in_torch`, in kernels, for float32 and a fixed k."""
    from ndgpa.selection.triton_top_k import select

    count = selection_heads(share, of.query.shape[1], of.key.shape[1])
    blocks = select(of, forced, k, relevance, count)
    if forced is None:
        return blocks
    return ascending(torch.cat([blocks, forced], dim=-1), of.key.shape[2]).int()


@select_top_k.register_fake
def _(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    forced: Tensor | None,
    cell_group: Tensor | None,
    key_group: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    *_: Any,
    **__: Any,
) -> Tensor:
    count = selection_heads(share, query.shape[1], key.shape[1])
    width = _width(k, key.shape[2], forced)
    return query.new_empty(query.shape[0], count, query.shape[2], width, dtype=torch.int32)


def _width(k: int, num_blocks: int, forced: Tensor | None) -> int:
    return min(k, num_blocks) + (0 if forced is None else forced.shape[-1])


select_top_k.register_vmap(fold_into_batch(select_top_k, batched=6))


@count_products("select_top_k")
def _(
    query: Any,
    key: Any,
    bias: Any,
    log_size: Any,
    weight: Any,
    forced: Any,
    cell_group: Any,
    key_group: Any,
    k: int,
    relevance: str,
    share: str,
    *_: Any,
    **__: Any,
) -> int:
    """The coarse logits; of sums over the queries of a cell where only those are wanted."""
    (batch, heads, cells, places), width = query[:4], query[-1]
    rows = heads * places if relevance == "mass" else heads if share == "head" else key[1]
    return 2 * batch * rows * cells * key[2] * width
