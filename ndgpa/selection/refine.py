"""A second look: a rule names candidates, and each cell keeps the best of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import call, wide
from ndgpa.problem import Problem, Selection, dot_form
from ndgpa.selection.base import Rule, check_rules, once
from ndgpa.selection.coarse import STAND_INS, StandIn, check_has_keys
from ndgpa.selection.ranking import in_order
from ndgpa.selection.second_look import second_look
from ndgpa.selection.slots import visible
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.middles import seen_middles

# What stands for each part of each block, and its seen sites, as `seen_middles` takes them.
Cut = Callable[
    [SpatialStructure, Tensor, Tensor | None, int],
    tuple[Tensor, Tensor],  # (b, h, B, S, d), (b or 1, B, S)
]


@dataclass(frozen=True)
class Refine(Rule):
    """Of the blocks that a rule names, each cell reads the `keep` best at a second look.

    Means choose the candidates cheaply, and a finer product ranks them, for means alone miss blocks
    whose sites differ: blocks of queries and of keys are cut into parts, runs of their sites in the
    order in which the structure lists them, and the mean of each part of the cell, or one site of
    it, is compared with that of each part of a candidate. Relevance is counted as for `TopK`, but
    by a softmax over the candidates alone, in which each part weighs as its sites do; of equals,
    the lowest id is kept. The ranking carries no gradient; a slot that is kept keeps its bias. If
    causal, the candidates that are wholly past are ranked, by the queries of the cell's earliest
    time, and the others are read besides. Join what is to be read whatever its rank:
    `Refine(TopK(48), 12) | Own()`.

    Args:
        rule: Names the candidates, e.g. `TopK(48)` or `MultiLevel`, of which this becomes the last
            step.
        keep: Blocks to keep for each cell.
        parts: Parts of a block, on both sides. As many as it has sites compares every site of the
            cell with every site of a candidate; 1 compares means.
        estimate: What stands for a part, "mean" or "site", as for a block in `TopK`.

    Raises:
        ValueError, TypeError: `rule` is no rule, or `keep` or `parts` is no positive int, or
            `estimate` another word.
    """

    rule: Rule
    keep: int
    parts: int = 4
    estimate: StandIn = "mean"

    def __post_init__(self) -> None:
        check_rules("Refine", (self.rule,))
        arguments.positive_count("keep", self.keep)
        arguments.positive_count("parts", self.parts)
        arguments.one_of("estimate", self.estimate, STAND_INS)

    def select(self, problem: Problem) -> Selection:
        found = self.rule.select(problem)
        found = once(found.blocks, found.bias, problem.key_structure.num_blocks)
        candidates = visible(found.blocks, problem.structure, problem.key_structure, problem.causal)
        ranked, besides, room = candidates, torch.zeros_like(candidates, dtype=torch.bool), 0
        if problem.causal:
            besides = _in_part_past(candidates, problem)
            ranked = candidates.masked_fill(besides, -1)
            room = problem.structure.overlapping(problem.key_structure).shape[1]
        check_has_keys("Refine", problem)
        cut = _means if self.estimate == "mean" else seen_middles
        query, weight = _parts_of_cells(problem, self.parts, cut)
        key, bias, scale = _parts_of_keys(problem, self.parts, cut)
        scores = call(second_look, query, key, bias, ranked, weight, scale)
        return _kept(found, candidates, scores, besides, self.keep, room)


def _in_part_past(
    candidates: Int[Tensor, "b hs C W"], problem: Problem
) -> Bool[Tensor, "b hs C W"]:
    """Find the candidates that a cell can see in part, at its earliest time."""
    last = problem.key_structure.block_span[1][candidates.clamp(min=0).long()]
    return (candidates >= 0) & (last > problem.structure.cell_span[0][:, None])


def _parts_of_cells(
    problem: Problem, parts: int, cut: Cut
) -> tuple[Float[Tensor, "b h C X d"], Float[Tensor, "b C X"]]:
    """The query of each part of each cell and what it weighs; 0 for one that takes no part."""
    structure, voters = problem.structure, problem.query_mask
    if problem.causal:
        first = structure.first_in_cell[None]
        voters = first if voters is None else first & voters
    query, count = cut(structure, problem.query.detach(), voters, parts)
    cells = structure.cells
    weight = count.expand(query.shape[0], -1, -1)[:, cells.clamp(min=0)]
    weight = weight.masked_fill((cells < 0)[..., None], 0)
    return query[:, :, cells.clamp(min=0)].flatten(3, 4), weight.flatten(2)


def _parts_of_keys(
    problem: Problem, parts: int, cut: Cut
) -> tuple[Float[Tensor, "b hk B S d"], Float[Tensor, "b hk B S"], float]:
    """The key of each part of each block, its bias, -inf for none, and the scale."""
    key, count = cut(problem.key_structure, problem.key.detach(), problem.key_mask, parts)
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    size = count.log()[:, None].expand(key.shape[:4])
    return key, size if bias is None else size + bias, scale


def _means(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    seen: Bool[Tensor, "#b n"] | None,
    parts: int,
) -> tuple[Float[Tensor, "b h B S d"], Float[Tensor, "#b B S"]]:
    """Average the features over the seen sites of each part, 0 where there are none; count them."""
    places = structure.sites_per_block
    length = -(-places // parts)
    there = (structure.blocks >= 0)[None]
    if seen is not None:
        there = structure.by_block(seen[..., None].to(wide(x)))[..., 0] > 0
        x = x.masked_fill(~seen[:, None, :, None], 0)
    fill = -places % length

    def total(by_place: Tensor, dim: int) -> Tensor:
        if fill:
            by_place = F.pad(by_place, (0, 0) * (-1 - dim) + (0, fill))
        return by_place.unflatten(dim, (-1, length)).sum(dim=dim, dtype=wide(x))

    count = total(there.to(wide(x)), -1)
    return total(structure.by_block(x), -2) / count.clamp(min=1)[:, None, ..., None], count


def _kept(
    found: Selection,
    candidates: Int[Tensor, "b hs C W"],
    scores: Float[Tensor, "b hs C W"],
    besides: Bool[Tensor, "b hs C W"],
    keep: int,
    room: int,
) -> Selection:
    """The best and those besides, of which there is `room`, ascending, empty slots last."""
    width = candidates.shape[3]
    best = in_order(scores, descending=True, first=min(keep, width))[1]
    kept = torch.zeros_like(besides).scatter(3, best, scores.gather(3, best) > -torch.inf) | besides
    place = torch.arange(width, device=kept.device)
    place = in_order(place.where(kept, width), first=min(width, keep + room))[0]
    empty = place == width
    place = place.clamp(max=max(0, width - 1))
    blocks = candidates.gather(3, place).masked_fill(empty, -1)
    bias = None if found.bias is None else found.bias.gather(3, place).masked_fill(empty, 0)
    return Selection(blocks.int(), bias)
