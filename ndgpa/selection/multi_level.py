"""Down a pyramid of blocks of blocks: near n log n instead of all pairs of cells and blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._flops import count_products
from ndgpa._ops import fold_into_batch
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.causal import blocks_between
from ndgpa.selection.coarse import Coarse, by_cell, coarse_level
from ndgpa.selection.slots import ascending
from ndgpa.selection.top_k import (
    SHARE,
    always_read,
    as_tuple,
    check_forced,
    most_relevant,
    select_top_k,
)
from ndgpa.structures.base import SpatialStructure

ESTIMATES = ("box", "mean")


@dataclass(frozen=True)
class MultiLevel(Rule):
    """Look at the coarsest level in full, then only at the children of what was kept.

    A level's nodes are `factor` of the next finer level's (along every axis of a grid); the finest
    level's are the key blocks. At each level a cell keeps the most relevant nodes, of equals those
    of lowest id; only their children are looked at next. A node is as relevant as its best block
    could be: it knows the least and the greatest value of each feature of its blocks' keys, which
    bounds the logit of any of them. With one level this is `TopK(keep[0])`.

    If causal, nodes that are partly later than a cell are neither trusted nor dropped: their
    children are looked at besides.

    Source: the token pyramid of QuadTree attention (Tang et al. 2022), for any structure that
    coarsens; the bound of Quest (Tang et al. 2024).

    Args:
        keep: How many nodes a cell keeps at each level, coarsest first; the last is how many key
            blocks it reads, the paper's kappa.
        factor: How many nodes make one of the next coarser level, as for `coarsen`.
        share, force: As for `TopK`.
        estimate: What a node stands for: "box", the bound, or "mean", which costs half as much and
            misses a block that is unlike its neighbours.

    Raises:
        ValueError, TypeError: A count or factor below 1, or more levels than the blocks can be
            coarsened to.
    """

    keep: tuple[int, ...]
    factor: int | tuple[int, ...] = 2
    share: str = "head"
    force: tuple[int | str, ...] | int | str = ()
    estimate: str = "box"

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        _check_factor(self.factor)
        arguments.one_of("estimate", self.estimate, ESTIMATES)
        arguments.one_of("share", self.share, SHARE)
        check_forced(as_tuple(self.force))

    def select(self, problem: Problem) -> Selection:
        if len(self.keep) == 1:
            return Selection(
                most_relevant(problem, self.keep[0], share=self.share, force=self.force)
            )
        coarse = coarse_level(problem)
        nodes = list(_pyramid(problem, coarse, len(self.keep), self.factor))
        query, weight = by_cell(coarse, problem.structure)
        weight = weight.expand(query.shape[0], -1, -1)
        query, scale = _scaled_last(query.detach(), coarse)
        now = problem.structure.cell_span[0] if problem.causal else None
        top = nodes[-1]
        kept = select_top_k(
            _signed(query) if self.estimate == "box" else query,
            top.features(self.estimate == "box"),
            None,
            top.seen.log().expand(query.shape[0], -1),
            weight,
            problem.structure.cell_group,
            top.group,
            None,
            self.keep[0],
            "mass",
            self.share,
            scale,
            now,
            top.last,
        )
        for level, count in zip(reversed(range(len(self.keep) - 1)), self.keep[1:], strict=True):
            parent, node = nodes[level + 1], nodes[level]
            box = self.estimate == "box" and level > 0
            kept = select_children(
                _signed(query) if box else query,
                parent.structure.by_block(node.features(box)),
                _sizes_by_parent(node, parent).expand(query.shape[0], -1, -1),
                _besides(kept, problem, self.factor, level + 1),
                weight,
                parent.structure.blocks,
                always_read(self.force, problem) if level == 0 else None,
                count,
                self.share,
                scale,
                now,
                node.last,
            )
        return Selection(kept)


@dataclass(frozen=True)
class _Nodes:
    """One level: what its nodes stand for."""

    structure: SpatialStructure  # its blocks are the nodes, its sites the next finer level's
    mean: Float[Tensor, "b hk N d"]
    least: Float[Tensor, "b hk N d"]
    greatest: Float[Tensor, "b hk N d"]
    seen: Float[Tensor, "#b N"]  # sites
    first: Int[Tensor, " N"] | None  # the earliest and the latest time
    last: Int[Tensor, " N"] | None

    @property
    def group(self) -> Int[Tensor, " N"] | None:
        return self.structure.group

    def features(self, box: bool) -> Float[Tensor, "b hk N f"]:
        """What a query is multiplied with."""
        return torch.cat([self.greatest, self.least], dim=-1) if box else self.mean


def _pyramid(
    problem: Problem, coarse: Coarse, levels: int, factor: int | tuple[int, ...]
) -> Iterator[_Nodes]:
    """The levels, finest first."""
    structure = problem.key_structure
    first, last = structure.block_span if problem.causal else (None, None)
    mean = coarse.key.detach()
    if coarse.bias is not None:
        mean = torch.cat([mean, coarse.bias.detach()[..., None]], dim=-1)
    nodes = _Nodes(structure, mean, mean, mean, coarse.seen, first, last)
    yield nodes
    for level in range(1, levels):
        structure = nodes.structure.coarsened(factor)
        _check_shrinks(level, levels, nodes.structure.num_blocks, structure.num_blocks)
        nodes = _parents(nodes, structure)
        yield nodes


def _parents(nodes: _Nodes, structure: SpatialStructure) -> _Nodes:
    """The next coarser level."""
    seen = nodes.seen[:, None, :, None]
    total = structure.block_sums(nodes.seen[..., None])[..., 0]
    mean = structure.block_sums(seen * nodes.mean) / total.clamp(min=1)[:, None, :, None]
    least = _extreme(structure, nodes.least.masked_fill(seen == 0, torch.inf), torch.inf)
    greatest = _extreme(structure, nodes.greatest.masked_fill(seen == 0, -torch.inf), -torch.inf)
    nothing = (total == 0)[:, None, :, None]
    first = last = None
    if nodes.first is not None and nodes.last is not None:
        first, last = structure.span_of_blocks(nodes.first, nodes.last)
    return _Nodes(
        structure,
        mean,
        least.masked_fill(nothing, 0),
        greatest.masked_fill(nothing, 0),
        total,
        first,
        last,
    )


def _extreme(structure: SpatialStructure, x: Tensor, empty: float) -> Tensor:
    """The least value in each block if an empty place counts as inf, the greatest if as -inf."""
    children = structure.by_block(x).masked_fill((structure.blocks < 0)[..., None], empty)
    return children.amin(dim=-2) if empty > 0 else children.amax(dim=-2)


def _besides(
    kept: Int[Tensor, "b hs C K"],
    problem: Problem,
    factor: int | tuple[int, ...],
    level: int,
) -> Int[Tensor, "b hs C K2"]:
    """The kept nodes of a level and, if causal, those that are partly later than the cell."""
    if not problem.causal:
        return kept
    table = problem.structure.kept_with(
        problem.key_structure,  # times are its own; another one may have parents that are equal
        f"straddling {factor} {level}",
        lambda own, keys: _straddling(own, keys, factor, level),
    )
    table = table.int().expand(*kept.shape[:2], -1, -1)
    return torch.cat([kept, table], dim=-1)


def _straddling(
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    factor: int | tuple[int, ...],
    level: int,
) -> Int[Tensor, "C E"]:
    """The nodes of a level that are neither wholly past nor wholly later than a cell."""
    nodes, (first, last) = key_structure, key_structure.block_span
    for _ in range(level):
        nodes = nodes.coarsened(factor)
        first, last = nodes.span_of_blocks(first, last)
    now = structure.cell_span[0]
    return blocks_between(now, now, first, last, structure.cell_group, nodes.group)


def _sizes_by_parent(node: _Nodes, parent: _Nodes) -> Float[Tensor, "#b N R"]:
    """The logarithm of the seen sites of each child."""
    return parent.structure.by_block(node.seen.log()[..., None])[..., 0]


def _scaled_last(query: Tensor, coarse: Coarse) -> tuple[Tensor, float]:
    """Queries, and the positive factor of their products, by which equals stay equal.

    The bias of a key is one more feature, which is not scaled.
    """
    if coarse.bias is None:
        return query * math.copysign(1.0, coarse.scale), abs(coarse.scale)
    query = query * coarse.scale
    return torch.cat([query, query.new_ones(*query.shape[:-1], 1)], dim=-1), 1.0


def _signed(query: Tensor) -> Tensor:
    """Queries that meet the greatest value of a feature where positive, the least where not."""
    return torch.cat([query.clamp(min=0), query.clamp(max=0)], dim=-1)


# Elements of one tile: keys gathered and scores.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}
# More than the number of any child.
_NOBODY = (1 << 31) - 1


@torch.library.custom_op("ndgpa::select_children", mutates_args=())
def select_children(
    query: Tensor,  # (b, h, C, P, f)
    key: Tensor,  # (b, hk, N, R, f): the children of each node
    log_size: Tensor,  # (b, N, R), -inf for a child that does not exist; 0 in empty places
    kept: Tensor,  # (b, hs, C, K) int32 nodes, -1 for an empty slot
    weight: Tensor,  # (b, C, P)
    children: Tensor,  # (N, R) int64, -1 for an empty place
    always: Tensor | None,  # (C, F) children that are read anyway
    k: int,
    share: str,
    scale: float,  # not negative
    cell_time: Tensor | None,  # (C,)
    child_time: Tensor | None,  # (number of children,)
) -> Tensor:  # (b, hs, C, min(k, K R) + F) int32, ascending, empty slots last
    """The most relevant children of the nodes that each cell kept."""
    batch, heads, num_cells, places, width = query.shape
    key_heads, nodes, per_node = key.shape[1:4]
    if share == "head":
        key = key.repeat_interleave(heads // key_heads, dim=1)
    sharers = kept.shape[1]
    split = (batch * sharers, key.shape[1] // sharers)
    query = query.reshape(*split, heads // key.shape[1], num_cells, places, width)
    log_size = log_size.masked_fill(children < 0, -torch.inf)
    rank = (_NOBODY - children).masked_fill(log_size == -torch.inf, -1)
    # One more node, without children, is what an empty slot kept.
    rows_of_keys = F.pad(key.reshape(*split, nodes, per_node * width), (0, 0, 0, 1))
    log_size = F.pad(log_size, (0, 0, 0, 1), value=-torch.inf)
    rank = F.pad(rank, (0, 0, 0, 1), value=-1)
    wide = kept.shape[-1] * per_node
    forced = 0 if always is None else always.shape[1]
    out = kept.new_empty(*kept.shape[:3], min(k, wide) + forced)
    size = (width + 2 * query.shape[2] * places) * split[1] * wide
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // size)
    for row in range(split[0]):
        b, head = divmod(row, sharers)
        for begin in range(0, num_cells, step):
            cells = slice(begin, begin + step)
            own = kept[b, head, cells]
            ids = own.where(own >= 0, nodes).flatten()
            sizes, ranks = (x[b].index_select(0, ids).view(-1, wide) for x in (log_size, rank))
            if cell_time is not None and child_time is not None:
                later = _time_of(ranks, child_time) > cell_time[cells, None]
                sizes, ranks = sizes.masked_fill(later, -torch.inf), ranks.masked_fill(later, -1)
            scores = _mass_of_children(
                query[row, :, :, cells], rows_of_keys[row], sizes, weight[b, cells], scale, ids
            )
            if always is not None:
                ranks = _without(ranks, always[cells])
            chosen = _best(scores, ranks, min(k, wide))
            if always is not None:
                chosen = torch.cat([chosen, always[cells]], dim=1)
            out[b, head, cells] = ascending(chosen, _NOBODY).int()
    return out


def _time_of(ranks: Tensor, child_time: Tensor) -> Tensor:
    """The time of each child; any time where there is none."""
    return child_time[(_NOBODY - ranks).clamp(max=len(child_time) - 1)]


def _mass_of_children(
    query: Tensor,  # (gk, g, c, P, f)
    keys: Tensor,  # (gk, N, R f)
    log_size: Tensor,  # (c, K R), -inf where there is nothing
    weight: Tensor,  # (c, P)
    scale: float,
    ids: Tensor,  # (c K,)
) -> Tensor:  # (c, K R)
    total, hidden = torch.zeros_like(log_size), (log_size == -torch.inf)[:, None]
    for own, table in zip(query, keys):
        gathered = table.index_select(0, ids).view(*log_size.shape, query.shape[-1])
        tall = own.transpose(0, 1).flatten(1, 2)  # (c, g P, f)
        logits = torch.bmm(tall, gathered.mT)
        torch.add(log_size[:, None], logits, alpha=scale, out=logits)
        mass = logits.masked_fill_(hidden, -torch.inf).softmax(dim=-1).nan_to_num_(0.0)
        total += torch.bmm(weight.repeat(1, len(own))[:, None], mass)[:, 0]
    return total


def _without(ranks: Tensor, always: Tensor) -> Tensor:
    """Ranks less those of the children that are read anyway."""
    for column in always.unbind(dim=1):
        ranks = ranks.masked_fill(ranks == _NOBODY - column[:, None], -1)
    return ranks


def _best(scores: Tensor, ranks: Tensor, k: int) -> Tensor:  # (c, k)
    """The numbers of the k best children, -1 for none; of equals the lowest number.

    Nothing is asked of the device, so a GPU is not waited for.

    Args:
        scores: (c, w), at least 0.
        ranks: (c, w), `_NOBODY` less the number of each child, -1 for one that is no candidate.
    """
    if scores.dtype == torch.float64:
        ranks = _best_of_two_sorts(scores, ranks, k)
    else:  # the bits of a float that is not negative are in its order: one integer says both
        bits = scores.float().view(torch.int32).long()
        both = bits.mul_(1 << 32).add_(ranks).masked_fill_(ranks < 0, -1)
        both = both.topk(k, dim=1, sorted=False).values
        ranks = both.bitwise_and(_NOBODY).masked_fill_(both < 0, -1)
    return (_NOBODY - ranks).masked_fill_(ranks < 0, -1)


def _best_of_two_sorts(scores: Tensor, ranks: Tensor, k: int) -> Tensor:
    ranks, order = ranks.sort(dim=1, descending=True)
    scores = scores.gather(1, order).masked_fill(ranks < 0, -torch.inf)
    return ranks.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k])


@select_children.register_fake
def _(
    query: Tensor,
    key: Tensor,
    log_size: Tensor,
    kept: Tensor,
    weight: Tensor,
    children: Tensor,
    always: Tensor | None,
    k: int,
    share: str,
    scale: float,
    cell_time: Tensor | None,
    child_time: Tensor | None,
) -> Tensor:
    width = min(k, kept.shape[-1] * children.shape[1])
    forced = 0 if always is None else always.shape[1]
    return kept.new_empty(*kept.shape[:3], width + forced)


select_children.register_vmap(fold_into_batch(select_children, batched=5))


@count_products("select_children")
def _(query: Any, key: Any, log_size: Any, kept: Any, *_: Any, **__: Any) -> int:
    """The logits of all children of what was kept, and the weighted sum of their masses."""
    queries = math.prod(query[:4])
    return 2 * queries * kept[3] * key[3] * (query[4] + 1)


def _check_keep(keep: Any) -> None:
    if not isinstance(keep, tuple) or not keep:
        raise TypeError(f"keep must be a tuple with one count for each level; got {keep!r}")
    for count in keep:
        arguments.positive_count("keep", count)


def _check_factor(factor: Any) -> None:
    if not isinstance(factor, (int, tuple)):
        raise TypeError(f"factor must be an int or a tuple of ints; got {factor!r}")
    if min(arguments.ints("factor", factor), default=0) < 1:
        raise ValueError(f"factor must be at least 1; got {factor}")


def _check_shrinks(level: int, levels: int, before: int, after: int) -> None:
    if after >= before:
        raise ValueError(
            f"MultiLevel has {levels} levels, but level {level} would have {after} nodes, no fewer "
            f"than the {before} below it; use fewer levels or a larger factor"
        )
