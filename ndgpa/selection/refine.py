"""A second look: a rule names candidates, and each cell keeps the best of them."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._flops import attention, count_products
from ndgpa._ops import fold_into_batch
from ndgpa.problem import Problem, Selection, dot_form, hide_keys
from ndgpa.selection.base import Rule, check_rules, once
from ndgpa.selection.coarse import by_cell, check_has_keys, coarse_level
from ndgpa.selection.slots import visible

By = Literal["keys", "queries"]
BY = get_args(By)

# Numbers of one tile: keys gathered and logits.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class Refine(Rule):
    """Of the blocks that a rule names, each cell reads the `keep` best at a second look.

    Means choose the candidates cheaply, and a finer product ranks them, for means alone miss blocks
    whose sites differ. Relevance is counted as for `TopK`, but by a softmax over the candidates
    alone; of equals, the lowest id is kept. The ranking carries no gradient; a slot that is kept
    keeps its bias. If causal, the candidates that are wholly past are ranked, by the queries of the
    cell's earliest time, and the others are read besides. Join what is to be read whatever its
    rank: `Refine(TopK(48), 12) | Own()`.

    Args:
        rule: Names the candidates, e.g. `TopK(48)` or `MultiLevel`, of which this becomes the last
            step.
        keep: Blocks to keep for each cell.
        by: The finer side: "keys" compares the mean query of each block of the cell with every
            site of a candidate, "queries" every site of the cell with the mean of a candidate.

    Raises:
        ValueError, TypeError: `rule` is no rule, `keep` is below 1, or `by` an unknown word.
    """

    rule: Rule
    keep: int
    by: By = "keys"

    def __post_init__(self) -> None:
        check_rules("Refine", (self.rule,))
        arguments.positive_count("keep", self.keep)
        arguments.one_of("by", self.by, BY)

    def select(self, problem: Problem) -> Selection:
        found = self.rule.select(problem)
        found = once(found.blocks, found.bias, problem.key_structure.num_blocks)
        candidates = visible(found.blocks, problem.structure, problem.key_structure, problem.causal)
        ranked, besides, room = candidates, torch.zeros_like(candidates, dtype=torch.bool), 0
        if problem.causal:
            besides = _in_part_past(candidates, problem)
            ranked = candidates.masked_fill(besides, -1)
            room = problem.structure.overlapping(problem.key_structure).shape[1]
        if self.by == "keys":
            check_has_keys('Refine(by="keys")', problem)
        sides = _by_keys if self.by == "keys" else _by_queries
        query, weight, key, bias = (x.detach() for x in sides(problem))
        weight = weight.expand(len(query), -1, -1)
        scale = dot_form(problem.key[:, :, :0], problem.affinity, problem.scale)[1]
        scores = second_look(query, key, bias, ranked, weight, scale)
        return _kept(found, candidates, scores, besides, self.keep, room)


def _in_part_past(
    candidates: Int[Tensor, "b hs C W"], problem: Problem
) -> Bool[Tensor, "b hs C W"]:
    """Find the candidates that a cell can see in part, at its earliest time."""
    last = problem.key_structure.block_span[1][candidates.clamp(min=0)]
    return (candidates >= 0) & (last > problem.structure.cell_span[0][:, None])


def _by_keys(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean queries of each cell against the sites of each block.

    Returns:
        Queries (b, h, C, X, d) and their weights (#b, C, X), keys (b, hk, B, S, d) and their
        biases (b, hk, B, S), -inf for a key that does not exist.
    """
    structure, mask = problem.key_structure, problem.key_mask
    query, weight = by_cell(coarse_level(problem), problem.structure)
    key = problem.key.to(query.dtype)
    if mask is not None:
        key = key.masked_fill(~mask[:, None, :, None], 0)
    bias = hide_keys(dot_form(key, problem.affinity, problem.scale)[0], key, mask)
    if bias is None:
        bias = key.new_zeros(key.shape[:3])
    bias = structure.by_block(bias[..., None])[..., 0]
    bias = bias.masked_fill(structure.blocks < 0, -torch.inf)
    return query, weight, structure.by_block(key), bias


def _by_queries(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for the sites of each cell against the mean of each block."""
    structure, coarse = problem.structure, coarse_level(problem)
    asks = (structure.cell_sites >= 0)[None]
    if problem.query_mask is not None:
        asks = asks & problem.query_mask[:, structure.cell_sites.clamp(min=0)]
    if problem.causal:
        asks = asks & structure.first_in_cell[structure.cell_sites.clamp(min=0)]
    query = structure.partition(problem.query.to(coarse.key.dtype))
    query = query.masked_fill(~asks[:, None, ..., None], 0)
    bias = coarse.seen.log()[:, None].expand(coarse.key.shape[:3])
    if coarse.bias is not None:
        bias = bias + coarse.bias
    return query, asks.to(query.dtype), coarse.key[:, :, :, None], bias[..., None]


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
