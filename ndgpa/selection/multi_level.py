"""Down a pyramid of blocks of blocks: near n log n instead of all pairs of cells and blocks."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.coarse import Coarse, by_cell, coarse_level
from ndgpa.selection.forced import always_read, check_force
from ndgpa.selection.pyramid import Nodes, pyramid, straddling
from ndgpa.selection.relevance import SHARE, Share
from ndgpa.selection.select_blocks import most_relevant, select_top_k
from ndgpa.selection.select_children import select_children

Estimate = Literal["box", "mean"]
ESTIMATES = get_args(Estimate)


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
    share: Share = "head"
    force: Rule | None = None
    estimate: Estimate = "box"

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        _check_factor(self.factor)
        arguments.one_of("estimate", self.estimate, ESTIMATES)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)

    def select(self, problem: Problem) -> Selection:
        if len(self.keep) == 1:
            blocks = most_relevant(problem, self.keep[0], share=self.share, force=self.force)
            return Selection(blocks)
        coarse = coarse_level(problem)
        keys, depth = problem.key_structure, len(self.keep)
        *lower, top = pyramid(coarse, keys, problem.causal, depth, self.factor)
        cells = _cells(coarse, problem)
        kept, parent = self._keep_at_the_top(cells, top), top
        for level, nodes in reversed(list(enumerate(lower))):
            if problem.causal:
                table = straddling(problem.structure, keys, self.factor, level + 1)
                kept = torch.cat([kept, table.int().expand(*kept.shape[:2], -1, -1)], dim=-1)
            forced = always_read(self.force, problem, kept.shape[1]) if level == 0 else None
            kept, parent = self._keep_below(cells, parent, nodes, kept, forced, level), nodes
        return Selection(kept)

    def _keep_at_the_top(self, cells: "_Cells", nodes: Nodes) -> Int[Tensor, "b hs C K"]:
        """Keep the best of all nodes of the coarsest level."""
        box = self.estimate == "box"
        return select_top_k(
            query=_signed(cells.query) if box else cells.query,
            key=nodes.features(box),
            bias=None,
            log_size=nodes.seen.log().expand(len(cells.query), -1),
            weight=cells.weight,
            forced=None,
            cell_group=cells.group,
            key_group=nodes.structure.group,
            k=self.keep[0],
            relevance="mass",
            share=self.share,
            scale=cells.scale,
            cell_time=cells.now,
            key_time=nodes.last,
        )

    def _keep_below(
        self,
        cells: "_Cells",
        parent: Nodes,
        nodes: Nodes,
        kept: Int[Tensor, "b hs C K"],
        forced: Int[Tensor, "b hs C F"] | None,
        level: int,
    ) -> Int[Tensor, "b hs C K2"]:
        """Keep the best children of what was kept at the level above."""
        box = self.estimate == "box" and level > 0  # a key block is its own bound
        by_parent = parent.structure.by_block
        return select_children(
            query=_signed(cells.query) if box else cells.query,
            key=by_parent(nodes.features(box)),
            log_size=by_parent(nodes.seen.log()[..., None])[..., 0].expand(len(kept), -1, -1),
            kept=kept,
            weight=cells.weight,
            forced=forced,
            children=parent.structure.blocks,
            k=self.keep[-1 - level],
            share=self.share,
            scale=cells.scale,
            cell_time=cells.now,
            child_time=nodes.last,
        )


@dataclass(frozen=True)
class _Cells:
    """What the cells ask with at every level."""

    query: Float[Tensor, "b h C P f"]
    weight: Float[Tensor, "b C P"]
    scale: float  # not negative
    group: Int[Tensor, " C"] | None
    now: Int[Tensor, " C"] | None  # the earliest time of each, if causal


def _cells(coarse: Coarse, problem: Problem) -> _Cells:
    """Lay the coarse queries out by cell; the bias of a key is one more feature of it.

    The scale is made positive, so that equals stay equal and the greatest stays the greatest.
    """
    structure = problem.structure
    query, weight = by_cell(coarse, structure)
    query, scale = _scaled_last(query.detach(), coarse)
    now = structure.cell_span[0] if problem.causal else None
    return _Cells(query, weight.expand(query.shape[0], -1, -1), scale, structure.cell_group, now)


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
