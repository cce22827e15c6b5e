"""The paper's rule: for each cell, the k most relevant key blocks."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._flops import count_products
from ndgpa._ops import fold_into_batch, has_triton
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.causal import overlapping
from ndgpa.selection.coarse import by_cell, coarse_level
from ndgpa.selection.relevance import RELEVANCE, cell_relevance
from ndgpa.selection.slots import (
    ascending,
    each_once,
    seen_blocks,
    without_blocks,
    without_empty_columns,
)
from ndgpa.structures.base import SpatialStructure, lookup

SHARE = ("head", "group", "all")
# Features of a head that the kernels take.
WIDEST = 256


@dataclass(frozen=True)
class TopK(Rule):
    """Each cell reads the k most relevant key blocks; of equals, those of lowest id.

    Source: R_kappa and Phase 1 of Algorithm 1 of Jetchev et al. 2021. The selection carries no
    gradient.

    Args:
        k: Blocks to keep for each cell (the paper's kappa); more than there are means all.
        relevance: "mass" sums the coarse softmax weights over the queries of a cell (the paper);
            "logit" sums the logits.
        share: Who shares one selection: "head" no two heads, "group" the query heads of one key
            head, "all" all heads. Relevance is summed over those who share.
        force: Blocks that are always read in addition to the k: "own" for the blocks that hold the
            cell's sites (queries and keys on the same sites), or numbers of key blocks.

    Raises:
        ValueError, TypeError: k below 1, an unknown word, or a forced block that does not exist.
    """

    k: int
    relevance: str = "mass"
    share: str = "head"
    force: tuple[int | str, ...] | int | str = ()

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.one_of("relevance", self.relevance, RELEVANCE)
        arguments.one_of("share", self.share, SHARE)
        check_forced(as_tuple(self.force))

    def select(self, problem: Problem) -> Selection:
        return Selection(most_relevant(problem, self.k, self.relevance, self.share, self.force))


def most_relevant(
    problem: Problem,
    k: int,
    relevance: str = "mass",
    share: str = "head",
    force: tuple[int | str, ...] | int | str = (),
    *,
    counts: Int[Tensor, " C"] | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Int[Tensor, "b hs C K"]:
    """The k most relevant key blocks of each cell, and those that are always read.

    If causal, a cell chooses from the blocks that are wholly past at its earliest time, by its
    queries of that time; the blocks that it can see in part are read besides.

    Args:
        k, relevance, share, force: As for `TopK`.
        counts: How many of the k each cell keeps; None means all.
        p: Keep only as many as reach this share of the cell's relevance; None means all.
        at_least: Kept whatever `p` says.

    Returns:
        int32 ids, ascending, -1 in the empty slots, which are last.
    """
    coarse = coarse_level(problem)
    structure, key_structure = problem.structure, problem.key_structure
    query, weight = by_cell(coarse, structure)
    log_size = coarse.log_size
    causal = problem.causal
    return select_top_k(
        query.detach(),
        coarse.key.detach(),
        None if coarse.bias is None else coarse.bias.detach(),
        None if log_size is None else log_size.expand(query.shape[0], -1),
        weight.expand(query.shape[0], -1, -1),
        structure.cell_group,
        key_structure.group,
        always_read(force, problem),
        k,
        relevance,
        share,
        coarse.scale,
        structure.cell_span[0] if causal else None,
        key_structure.block_span[1] if causal else None,
        counts,
        p,
        at_least,
    )


def always_read(
    force: tuple[int | str, ...] | int | str, problem: Problem
) -> Int[Tensor, "C F"] | None:
    """The blocks that each cell reads whatever their relevance, each once; -1 for an empty slot.

    The table depends on the two structures and the options alone and is made once for each.
    """
    structure, key_structure = problem.structure, problem.key_structure
    force = as_tuple(force)
    if not force and not problem.causal:
        return None

    def make(own: SpatialStructure, keys: SpatialStructure) -> Tensor:
        tables = []
        if force:
            of_tables = replace(problem, structure=own, key_structure=keys)
            tables.append(seen_blocks(forced_blocks(force, own, keys), of_tables))
        if problem.causal:
            tables.append(overlapping(own, keys))
        return each_once(torch.cat(tables, dim=1), keys.num_blocks)

    name = f"always read: {force}, causal: {problem.causal}"
    return structure.kept_with(key_structure, name, make)


def as_tuple(force: tuple[int | str, ...] | int | str) -> tuple[int | str, ...]:
    return force if isinstance(force, tuple) else (force,)


def forced_blocks(
    force: tuple[int | str, ...], structure: SpatialStructure, key_structure: SpatialStructure
) -> Int[Tensor, "C F"]:
    """The forced blocks of each cell; -1 for an empty slot."""
    named = sorted({item for item in force if isinstance(item, int)})
    if named:
        _check_forced_ids(named[-1], key_structure.num_blocks)
    tables = []
    if named:
        table = torch.tensor(named, dtype=torch.int64, device=structure.device)
        tables.append(table.expand(structure.num_cells, -1))
    if "own" in force:
        tables.append(_own_blocks(structure, key_structure))
    return torch.cat(tables, dim=1)


def _own_blocks(structure: SpatialStructure, key_structure: SpatialStructure) -> Int[Tensor, "C F"]:
    """The key blocks that hold the sites of each cell."""
    if key_structure is structure:
        return structure.cells
    _check_own_blocks(structure, key_structure)
    own = lookup(key_structure.block_of_site[:, None], structure.cell_sites)[..., 0]
    return without_empty_columns(each_once(own, key_structure.num_blocks))


def select_in_torch(
    query: Tensor,  # (b, h, C, P, d)
    key: Tensor,  # (b, hk, B_k, d)
    bias: Tensor | None,  # (b, hk, B_k)
    log_size: Tensor | None,  # (b, B_k)
    weight: Tensor,  # (b, C, P)
    cell_group: Tensor | None,  # (C,)
    key_group: Tensor | None,  # (B_k,)
    forced: Tensor | None,  # (C, F)
    k: int,
    relevance: str,
    share: str,
    scale: float,
    cell_time: Tensor | None = None,  # (C,)
    key_time: Tensor | None = None,  # (B_k,)
    counts: Tensor | None = None,  # (C,)
    p: float | None = None,
    at_least: int = 1,
) -> Tensor:  # (b, hs, C, min(k, B_k) + F) int32, ascending, empty slots last
    batch, heads, num_cells, _, _ = query.shape
    key_heads, num_blocks = key.shape[1:3]
    if share == "head":  # every head has its own key head beside it
        repeats = heads // key_heads
        key = key.repeat_interleave(repeats, dim=1)
        bias = None if bias is None else bias.repeat_interleave(repeats, dim=1)
    selection_heads = {"head": heads, "group": key_heads, "all": 1}[share]
    per_selection = key.shape[1] // selection_heads
    split = (batch * selection_heads, per_selection)
    tiles = cell_relevance(
        query.reshape(*split, heads // (selection_heads * per_selection), *query.shape[2:]),
        key.reshape(*split, *key.shape[2:]),
        None if bias is None else bias.reshape(*split, num_blocks),
        None if log_size is None else log_size.repeat_interleave(selection_heads, dim=0),
        weight.repeat_interleave(selection_heads, dim=0),
        cell_group,
        key_group,
        cell_time,
        key_time,
        relevance,
        scale,
    )
    out = query.new_empty(split[0], num_cells, _width(k, num_blocks, forced), dtype=torch.int32)
    for rows, cells, scores in tiles:
        always = None
        if forced is not None:
            always = forced[cells].expand(scores.shape[0], -1, -1)
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
    return out.unflatten(0, (batch, selection_heads))


# One opaque operator, so that a compiled graph does not unroll the tiles.
select_top_k = torch.library.custom_op("ndgpa::select_top_k", select_in_torch, mutates_args=())


@select_top_k.register_kernel("cuda")
def _(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    cell_group: Tensor | None,
    key_group: Tensor | None,
    forced: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    scale: float,
    cell_time: Tensor | None = None,
    key_time: Tensor | None = None,
    counts: Tensor | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Tensor:
    given = (query, key, bias, log_size, weight, cell_group, key_group, forced)
    options = (k, relevance, share, scale)
    of_fixed_k = counts is None and p is None
    narrow = query.dtype == torch.float32 and query.shape[-1] <= WIDEST
    if of_fixed_k and narrow and has_triton(query):
        return select_in_triton(*given, *options, cell_time, key_time)
    return select_in_torch(*given, *options, cell_time, key_time, counts, p, at_least)


def select_in_triton(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    cell_group: Tensor | None,
    key_group: Tensor | None,
    forced: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    scale: float,
    cell_time: Tensor | None = None,
    key_time: Tensor | None = None,
) -> Tensor:
    """As `select_in_torch`, in kernels, for float32 and fixed k."""
    from ndgpa.selection.triton_top_k import select

    heads = {"head": query.shape[1], "group": key.shape[1], "all": 1}[share]
    given = (query, key, bias, log_size, weight, cell_group, key_group, forced)
    blocks = select(*given, k, relevance, heads, scale, cell_time, key_time)
    if forced is None:
        return blocks
    always = forced.expand(*blocks.shape[:2], -1, -1)
    return ascending(torch.cat([blocks, always], dim=-1), key.shape[2]).int()


@select_top_k.register_fake
def _(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    cell_group: Tensor | None,
    key_group: Tensor | None,
    forced: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    scale: float,
    cell_time: Tensor | None = None,
    key_time: Tensor | None = None,
    counts: Tensor | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Tensor:
    heads = {"head": query.shape[1], "group": key.shape[1], "all": 1}[share]
    return query.new_empty(
        query.shape[0], heads, query.shape[2], _width(k, key.shape[2], forced), dtype=torch.int32
    )


select_top_k.register_vmap(fold_into_batch(select_top_k, batched=5))


def _width(k: int, num_blocks: int, forced: Tensor | None) -> int:
    return min(k, num_blocks) + (0 if forced is None else forced.shape[1])


def top_k_lowest_id(scores: Float[Tensor, "*batch B_k"], k: int) -> Int[Tensor, "*batch k"]:
    """Ids of the k largest scores, in no order; of equal ones the lowest id. NaN is the largest."""
    num_blocks = scores.shape[-1]
    if k == num_blocks:
        return torch.arange(k, device=scores.device).expand(*scores.shape[:-1], k)
    if scores.is_cuda:  # a host that looks for ties would wait
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    values, ids = scores.topk(k + 1, dim=-1)
    tied = ~(values[..., k - 1] > values[..., k])
    ids = ids[..., :k]
    if bool(tied.any()):
        rows, least = scores[tied], values[tied][:, k - 1, None]
        no_number = rows.isnan(), least.isnan()
        above = (rows > least) | (no_number[0] & ~no_number[1])
        equal = (rows == least) | (no_number[0] & no_number[1])
        left = k - above.sum(dim=-1, keepdim=True)
        keep = above | (equal & (equal.cumsum(dim=-1) <= left))
        ids[tied] = keep.nonzero()[:, 1].view(-1, k)
    return ids


def ranked(
    scores: Float[Tensor, "*batch c B_k"],
    k: int,
    counts: Int[Tensor, " c"] | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Int[Tensor, "*batch c k"]:
    """Ids of the k largest scores or fewer, largest first; -1 where a cell wants no more."""
    values, ids = scores.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(k, device=scores.device)
    drop = values[..., :k] == -torch.inf
    if counts is not None:
        drop = drop | (place >= counts[:, None])
    if p is not None and p < 1:  # all of it is every block, not as many as rounding leaves
        mass = values.clamp(min=0)
        before = mass.cumsum(dim=-1) - mass
        reached = before[..., :k] >= p * mass.sum(dim=-1, keepdim=True)
        drop = drop | (reached & (place >= at_least))
    return ids[..., :k].masked_fill(drop, -1)


@count_products("select_top_k")
def _(
    query: Any,
    key: Any,
    bias: Any,
    log_size: Any,
    weight: Any,
    cell_group: Any,
    key_group: Any,
    forced: Any,
    k: int,
    relevance: str,
    share: str,
    *_: Any,
    **__: Any,
) -> int:
    """The coarse logits; of sums over the queries of a cell where only those are wanted."""
    batch, heads, cells, places, width = query
    rows = heads * places if relevance == "mass" else heads if share == "head" else key[1]
    return 2 * batch * rows * cells * key[2] * width


def check_forced(force: Any) -> None:
    for item in force:
        if item != "own" and (isinstance(item, bool) or not isinstance(item, int)):
            raise TypeError(f"force must be 'own' or numbers of blocks; got {item!r}")
        if item != "own" and item < 0:
            raise ValueError(f"force contains block {item}; numbers start at 0")


def _check_forced_ids(largest: int, num_blocks: int) -> None:
    if largest >= num_blocks:
        raise ValueError(
            f"force contains block {largest} but key_structure has {num_blocks} blocks"
        )


def _check_own_blocks(structure: SpatialStructure, key_structure: SpatialStructure) -> None:
    if key_structure.num_sites != structure.num_sites:
        raise ValueError(
            "own blocks need queries and keys on the same sites; structure has "
            f"{structure.num_sites} sites but key_structure has {key_structure.num_sites}"
        )
