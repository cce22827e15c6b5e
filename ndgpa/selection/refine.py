"""A second look: a rule names candidates, and each cell keeps the best of them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._flops import attention, count_products
from ndgpa._ops import fold_into_batch, has_triton, wide
from ndgpa.problem import Problem, Selection, dot_form
from ndgpa.selection.base import Rule, check_rules, once
from ndgpa.selection.coarse import STAND_INS, StandIn, check_has_keys
from ndgpa.selection.slots import visible
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.middles import seen_middles

# What stands for each part of each block, and its seen sites, as `seen_middles` takes them.
Cut = Callable[
    [SpatialStructure, Tensor, Tensor | None, int],
    tuple[Tensor, Tensor],  # (b, h, B, S, d), (b or 1, B, S)
]
# Numbers of one tile: keys gathered and logits.
_TILE = {"cpu": 1 << 21, "cuda": 1 << 26}


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
        scores = second_look(query, key, bias, ranked, weight, scale)
        return _kept(found, candidates, scores, besides, self.keep, room)


def _in_part_past(
    candidates: Int[Tensor, "b hs C W"], problem: Problem
) -> Bool[Tensor, "b hs C W"]:
    """Find the candidates that a cell can see in part, at its earliest time."""
    last = problem.key_structure.block_span[1][candidates.clamp(min=0)]
    return (candidates >= 0) & (last > problem.structure.cell_span[0][:, None])


def _parts_of_cells(
    problem: Problem, parts: int, cut: Cut
) -> tuple[Float[Tensor, "b h C X d"], Float[Tensor, "b C X"]]:
    """The query of each part of each cell and what it weighs; 0 for one that takes no part."""
    structure, voters = problem.structure, problem.query_mask
    if problem.causal:
        first = structure.first_in_cell.expand(len(problem.query), -1)
        voters = first if voters is None else first & voters
    query, count = cut(structure, problem.query.detach(), voters, parts)
    cells = structure.cells
    weight = count.expand(len(query), -1, -1)[:, cells.clamp(min=0)]
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
    seen: Bool[Tensor, "b n"] | None,
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
    best = scores.sort(dim=3, descending=True, stable=True).indices[..., :keep]
    kept = torch.zeros_like(besides).scatter(3, best, scores.gather(3, best) > -torch.inf) | besides
    place = torch.arange(width, device=kept.device)
    place = place.where(kept, width).sort(dim=3).values[..., : min(width, keep + room)]
    empty = place == width
    place = place.clamp(max=max(0, width - 1))
    blocks = candidates.gather(3, place).masked_fill(empty, -1)
    bias = None if found.bias is None else found.bias.gather(3, place).masked_fill(empty, 0)
    return Selection(blocks.int(), bias)


@torch.library.custom_op("ndgpa::second_look", mutates_args=())
def second_look(
    query: Tensor,  # (b, h, C, X, d)
    key: Tensor,  # (b, hk, B, S, d)
    bias: Tensor,  # (b, hk, B, S), -inf for a key that does not exist
    candidates: Tensor,  # (b, hs, C, W) int32, -1 for none
    weight: Tensor,  # (b, C, X), 0 for a query that takes no part
    scale: float,
) -> Tensor:  # (b, hs, C, W)
    """The softmax mass of each candidate, summed over queries and heads; -inf for none."""
    if has_triton(query):
        from ndgpa.selection import triton_second_look

        if triton_second_look.fits(query, key):
            out = query.new_empty(candidates.shape)
            triton_second_look.write_mass(out, query, key, bias, candidates, weight, scale)
            return out
    return mass_in_torch(query, key, bias, candidates, weight, scale)


def mass_in_torch(
    query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, weight: Tensor, scale: float
) -> Tensor:
    """As `second_look`, with the keys of a tile of cells gathered."""
    batch, heads, num_cells, queries, _ = query.shape
    key_heads, blocks, sites, features = key.shape[1:]
    sharers, width = candidates.shape[1], candidates.shape[3]
    # An empty slot names one more block, which does not exist.
    table = F.pad(key.flatten(3), (0, 0, 0, 1))
    bias = F.pad(bias, (0, 0, 0, 1), value=-torch.inf)
    exists = (bias > -torch.inf).any(dim=-1)
    out = query.new_empty(candidates.shape)
    of_one = heads // max(key_heads, sharers)  # heads of a selection that share a key head
    size = width * sites * (features + 2 * of_one * queries)
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // max(1, size))
    for b in range(batch):
        for s in range(sharers):
            own = range(s * heads // sharers, (s + 1) * heads // sharers, of_one)
            for begin in range(0, num_cells, step):
                cells = slice(begin, begin + step)
                ids = candidates[b, s, cells].long() % (blocks + 1)
                total = query.new_zeros(ids.shape)
                there = torch.zeros_like(ids, dtype=torch.bool)
                for h in own:
                    g = h * key_heads // heads
                    tall = query[b, h : h + of_one, cells].transpose(0, 1).flatten(1, 2)
                    keys = table[b, g].index_select(0, ids.flatten()).view(len(ids), -1, features)
                    added = bias[b, g].index_select(0, ids.flatten()).view(len(ids), 1, -1)
                    logits = torch.baddbmm(added, tall, keys.mT, alpha=scale)
                    mass = logits.softmax(dim=-1).nan_to_num_(0.0)
                    mass = torch.bmm(weight[b, cells].repeat(1, of_one)[:, None], mass)
                    total += mass.view(*ids.shape, sites).sum(dim=-1)
                    there |= exists[b, g][ids]
                out[b, s, cells] = total.masked_fill(~there, -torch.inf)
    return out


@second_look.register_fake
def _(query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(candidates.shape)


second_look.register_vmap(fold_into_batch(second_look, batched=5))


@count_products("second_look")
def _(query: Any, key: Any, bias: Any, candidates: Any, *_: Any, **__: Any) -> int:
    """The logits, and their softmax by the weights of the queries."""
    return attention(prod(query[:4]) * candidates[3] * key[3], query[4], 1)
