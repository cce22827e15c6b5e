"""Down a pyramid of blocks of blocks: near n log n instead of all pairs of cells and blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import _checks
from ndgpa.selection.base import Coarse, Problem, Rule, Selection
from ndgpa.selection.causal import blocks_between
from ndgpa.selection.slots import ascending
from ndgpa.selection.top_k import (
    SHARE,
    always_read,
    as_tuple,
    by_cell,
    most_relevant,
    select_top_k,
    top_k_lowest_id,
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
        ValueError, TypeError: A count below 1, or more levels than the blocks can be coarsened to.
    """

    keep: tuple[int, ...]
    factor: int | tuple[int, ...] = 2
    share: str = "head"
    force: tuple[int | str, ...] | int | str = ()
    estimate: str = "box"

    def __post_init__(self) -> None:
        _checks.kept_per_level(self.keep)
        _checks.one_of("estimate", self.estimate, ESTIMATES)
        _checks.one_of("share", self.share, SHARE)
        _checks.forced(as_tuple(self.force))

    def select(self, problem: Problem) -> Selection:
        if len(self.keep) == 1:
            return Selection(
                most_relevant(problem, self.keep[0], share=self.share, force=self.force)
            )
        coarse = problem.coarse()
        nodes = list(_pyramid(problem, coarse, len(self.keep), self.factor))
        query, weight = by_cell(coarse, problem.structure)
        query = _with_one(query.detach() * coarse.scale, coarse)
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
            1.0,
            now,
            top.last,
        )
        for level, count in zip(reversed(range(len(self.keep) - 1)), self.keep[1:], strict=True):
            parent, node = nodes[level + 1], nodes[level]
            box = self.estimate == "box" and level > 0
            kept = select_children(
                _signed(query) if box else query,
                parent.structure.by_block(node.features(box)),
                parent.structure.by_block(node.seen.log()[..., None])[..., 0],
                weight,
                _besides(kept, parent, problem),
                parent.structure.blocks,
                always_read(self.force, problem) if level == 0 else None,
                count,
                self.share,
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
    if coarse.log_size is None:
        seen = structure.block_sizes.to(mean.dtype)[None]
    else:
        seen = coarse.log_size.exp()
    nodes = _Nodes(structure, mean, mean, mean, seen, first, last)
    yield nodes
    for level in range(1, levels):
        structure = nodes.structure.coarsened(factor)
        _checks.level_shrinks(level, levels, nodes.structure.num_blocks, structure.num_blocks)
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
        first, last = _span_of_children(nodes.first, nodes.last, structure)
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


def _span_of_children(
    first: Int[Tensor, " n"], last: Int[Tensor, " n"], structure: SpatialStructure
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    limits, empty = torch.iinfo(torch.int64), structure.blocks < 0
    children = structure.blocks.clamp(min=0)
    earliest = first[children].masked_fill(empty, limits.max).amin(dim=1)
    return earliest, last[children].masked_fill(empty, limits.min).amax(dim=1)


def _besides(
    kept: Int[Tensor, "b hs C K"], parent: _Nodes, problem: Problem
) -> Int[Tensor, "b hs C K2"]:
    """The kept nodes and, if causal, those that are partly later than the cell."""
    if parent.first is None or parent.last is None:
        return kept
    first, last, structure = parent.first, parent.last, problem.structure
    now = structure.cell_span[0]
    table = structure.kept_with(
        parent.structure,
        "straddling",
        lambda: blocks_between(now, now, first, last, structure.cell_group, parent.group),
    )
    table = table.int().expand(*kept.shape[:2], -1, -1)
    return torch.cat([kept, table], dim=-1)


def _with_one(query: Tensor, coarse: Coarse) -> Tensor:
    """Queries that meet the bias of a key as one more feature."""
    if coarse.bias is None:
        return query
    return torch.cat([query, query.new_ones(*query.shape[:-1], 1)], dim=-1)


def _signed(query: Tensor) -> Tensor:
    """Queries that meet the greatest value of a feature where positive, the least where not."""
    return torch.cat([query.clamp(min=0), query.clamp(max=0)], dim=-1)


# Elements of one tile: keys gathered and scores.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


@torch.library.custom_op("ndgpa::select_children", mutates_args=())
def select_children(
    query: Tensor,  # (b, h, C, P, f)
    key: Tensor,  # (b, hk, N, R, f): the children of each node
    log_size: Tensor,  # (b or 1, N, R), -inf for a child that does not exist; 0 in empty places
    weight: Tensor,  # (C, P)
    kept: Tensor,  # (b, hs, C, K) int32 nodes, -1 for an empty slot
    children: Tensor,  # (N, R) int64, -1 for an empty place
    always: Tensor | None,  # (C, F) children that are read anyway
    k: int,
    share: str,
    cell_time: Tensor | None,  # (C,)
    child_time: Tensor | None,  # (number of children,)
) -> Tensor:  # (b, hs, C, min(k, K R) + F) int32, ascending, empty slots last
    """The most relevant children of the nodes that each cell kept."""
    batch, heads, num_cells, places, _ = query.shape
    key_heads, nodes, per_node, width = key.shape[1:]
    if share == "head":
        key = key.repeat_interleave(heads // key_heads, dim=1)
    sharers = kept.shape[1]
    split = (batch * sharers, key.shape[1] // sharers)
    query = query.reshape(*split, -1, num_cells, places, width)
    rows_of_keys = key.reshape(*split, nodes, per_node * width)
    log_size = log_size.masked_fill(children < 0, -torch.inf).expand(batch, -1, -1)
    count, wide = children.max() + 1, kept.shape[-1] * per_node
    forced = 0 if always is None else always.shape[1]
    out = kept.new_empty(*kept.shape[:3], min(k, wide) + forced)
    size = (width + 2 * query.shape[2] * places) * split[1] * wide
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // size)
    for row in range(split[0]):
        b = row // sharers
        flat_kept = kept.view(split[0], num_cells, -1)[row]
        for begin in range(0, num_cells, step):
            cells = slice(begin, begin + step)
            ids, names = _children_of(flat_kept[cells], children)
            scores = _mass_of_children(
                query[row, :, :, cells],
                rows_of_keys[row],
                _hidden(log_size[b], ids, names, cells, cell_time, child_time),
                weight[cells],
                ids,
            )
            chosen = _best(scores, names, min(k, wide), None if always is None else always[cells])
            if always is not None:
                chosen = torch.cat([chosen, always[cells]], dim=1)
            out[b, row % sharers, cells] = ascending(chosen, int(count)).int()
    return out


def _children_of(kept: Tensor, children: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes (c, K), 0 for none, and the numbers of their children (c, K R), -1 for none."""
    ids = kept.long().clamp(min=0)
    names = children[ids].masked_fill((kept < 0)[..., None], -1)
    return ids, names.flatten(1)


def _hidden(
    log_size: Tensor,  # (N, R)
    ids: Tensor,  # (c, K)
    names: Tensor,  # (c, K R)
    cells: slice,
    cell_time: Tensor | None,
    child_time: Tensor | None,
) -> Tensor:  # (c, K R)
    """The logarithm of the weight of each child, -inf where the cell must not choose it."""
    size = log_size[ids].flatten(1).masked_fill(names < 0, -torch.inf)
    if cell_time is None or child_time is None:
        return size
    later = child_time[names.clamp(min=0)] > cell_time[cells, None]
    return size.masked_fill(later, -torch.inf)


def _mass_of_children(
    query: Tensor,  # (gk, g, c, P, f)
    keys: Tensor,  # (gk, N, R f)
    log_size: Tensor,  # (c, K R)
    weight: Tensor,  # (c, P)
    ids: Tensor,  # (c, K)
) -> Tensor:  # (c, K R), -inf where there is nothing to choose
    total = torch.zeros_like(log_size)
    for own, table in zip(query, keys):
        gathered = table.index_select(0, ids.flatten()).view(len(ids), -1, query.shape[-1])
        tall = own.transpose(0, 1).flatten(1, 2)  # (c, g P, f)
        mass = (torch.bmm(tall, gathered.mT) + log_size[:, None]).softmax(dim=-1).nan_to_num_(0.0)
        total += torch.bmm(weight.repeat(1, len(own))[:, None], mass)[:, 0]
    return total.masked_fill_(log_size == -torch.inf, -torch.inf)


def _best(scores: Tensor, names: Tensor, k: int, always: Tensor | None) -> Tensor:  # (c, k)
    """The numbers of the k best children, -1 for none; of equals the lowest number."""
    if always is not None:
        anyway = torch.zeros_like(names, dtype=torch.bool)
        for column in always.unbind(dim=1):
            anyway |= (names == column[:, None]) & (names >= 0)
        scores = scores.masked_fill(anyway, -torch.inf)
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    chosen = names.gather(1, places[:, :k]).masked_fill(values[:, :k] == -torch.inf, -1)
    if k < scores.shape[1]:
        tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
        if bool(tied.any()):  # in the order of their numbers the first of equals is the lowest
            ordered, order = names[tied].sort(dim=1)
            places = top_k_lowest_id(scores[tied].gather(1, order), k)
            chosen[tied] = ordered.gather(1, places)
    return chosen


@select_children.register_fake
def _(
    query: Tensor,
    key: Tensor,
    log_size: Tensor,
    weight: Tensor,
    kept: Tensor,
    children: Tensor,
    always: Tensor | None,
    k: int,
    share: str,
    cell_time: Tensor | None,
    child_time: Tensor | None,
) -> Tensor:
    width = min(k, kept.shape[-1] * children.shape[1])
    forced = 0 if always is None else always.shape[1]
    return kept.new_empty(*kept.shape[:3], width + forced)
