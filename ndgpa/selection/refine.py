"""A second look: a rule names candidates, and each cell keeps the best of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import fold_into_batch
from ndgpa.affinity import dot_form, hide_keys
from ndgpa.selection.base import Problem, Rule, Selection
from ndgpa.selection.causal import overlapping
from ndgpa.selection.means import seen_sums
from ndgpa.selection.slots import seen_blocks
from ndgpa.selection.top_k import by_cell
from ndgpa.selection.union import once

BY = ("keys", "queries")

# Elements of one tile: keys gathered and logits.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class Refine(Rule):
    """Of the blocks that a rule names, each cell reads the `keep` best at a second look.

    Means choose the candidates cheaply, and a finer product ranks them: means alone miss blocks
    whose sites differ. A candidate is as relevant as for `TopK`, with a softmax over the candidates
    alone; of equals, that of lowest id is kept. The ranking carries no gradient; a slot that is
    kept keeps its bias. If causal, candidates that are wholly past are ranked, by the queries of
    the cell's earliest time, and the others are read besides. What must be read whatever its rank
    is joined to it: `Refine(TopK(48), 12) | Own()`.

    Args:
        rule: Names the candidates, e.g. `TopK(48)`, or `MultiLevel`, whose last step this becomes.
        keep: Blocks to keep for each cell.
        by: The finer side: "keys" for the mean query of each block of the cell against every site
            of a candidate, "queries" for every site of the cell against a candidate's mean.

    Raises:
        ValueError, TypeError: `rule` is no rule, `keep` is below 1, or an unknown word.
    """

    rule: Rule
    keep: int
    by: str = "keys"

    def __post_init__(self) -> None:
        _checks.rules("Refine", (self.rule,))
        _checks.positive_count("keep", self.keep)
        _checks.one_of("by", self.by, BY)

    def select(self, problem: Problem) -> Selection:
        found = self.rule.select(problem)
        found = once(found.blocks, found.bias, problem.key_structure.num_blocks)
        candidates = seen_blocks(found.blocks, problem)
        ranked, besides = candidates, torch.zeros_like(candidates, dtype=torch.bool)
        if problem.causal:
            last = problem.key_structure.block_span[1][candidates.clamp(min=0)]
            besides = (candidates >= 0) & (last > problem.structure.cell_span[0][:, None])
            ranked = candidates.masked_fill(besides, -1)
        sides = _mean_queries if self.by == "keys" else _mean_keys
        query, weight, key, bias = (x.detach() for x in sides(problem))
        scores = second_look(query, key, bias, ranked, weight, _scale(problem))
        return _kept(found, candidates, scores, besides, self.keep, _room(problem))


def _scale(problem: Problem) -> float:
    """The factor of the dot products."""
    return dot_form(problem.key[:, :, :0], problem.affinity, problem.scale)[1]


def _room(problem: Problem) -> int:
    """How many blocks a causal cell may read besides."""
    if not problem.causal:
        return 0
    return overlapping(problem.structure, problem.key_structure).shape[1]


def _mean_queries(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and their weights by cell, keys and their biases by block: mean against site."""
    query, weight = by_cell(problem.coarse(), problem.structure)
    structure, key = problem.key_structure, problem.key.to(query.dtype)
    if problem.key_mask is not None:
        key = key.masked_fill(~problem.key_mask[:, None, :, None], 0)
    bias = hide_keys(dot_form(key, problem.affinity, problem.scale)[0], key, problem.key_mask)
    if bias is None:
        bias = key.new_zeros(key.shape[:3])
    bias = structure.by_block(bias[..., None])[..., 0]
    return (
        query,
        weight,
        structure.by_block(key),
        bias.masked_fill(structure.blocks < 0, -torch.inf),
    )


def _mean_keys(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same: site against mean. If causal, the sites of the cell's earliest time."""
    structure = problem.structure
    key, bias = _means(problem)
    query = structure.partition(problem.query.to(key.dtype))
    asks = structure.cell_sites >= 0
    if problem.causal:
        asks = asks & structure.first_in_cell[structure.cell_sites.clamp(min=0)]
        query = query.masked_fill(~asks[..., None], 0)
    return query, asks.to(query.dtype), key[:, :, :, None], bias[..., None]


def _means(problem: Problem) -> tuple[Tensor, Tensor]:
    """The mean key of each block, and its bias: of the affinity and of its seen sites."""
    structure, mask = problem.key_structure, problem.key_mask
    wide = torch.promote_types(problem.key.dtype, torch.float32)
    seen = structure.block_sizes.to(wide)[None]
    if mask is not None:
        seen = structure.block_sums(mask[..., None].to(wide))[..., 0]
    key = seen_sums(structure, problem.key, mask) / seen.clamp(min=1)[:, None, :, None]
    bias = dot_form(key, problem.affinity, problem.scale)[0]
    size = seen.log()[:, None].expand(key.shape[:3])
    return key, size if bias is None else size + bias


def _kept(
    found: Selection,
    candidates: Int[Tensor, "b hs C W"],
    scores: Float[Tensor, "b hs C W"],
    besides: Tensor,
    keep: int,
    room: int,
) -> Selection:
    """The best and those besides, ascending, empty slots last."""
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
    weight: Tensor,  # (C, X), 0 for who does not ask
    scale: float,
) -> Tensor:  # (b, hs, C, W)
    """The softmax mass of each candidate, summed over queries and heads; -inf for none."""
    batch, heads, num_cells, asking, _ = query.shape
    key_heads, blocks, sites, features = key.shape[1:]
    sharers, wide = candidates.shape[1], candidates.shape[3]
    # One more block, which does not exist, is what an empty slot names.
    table = F.pad(key.flatten(3), (0, 0, 0, 1))
    bias = F.pad(bias, (0, 0, 0, 1), value=-torch.inf)
    exists = (bias > -torch.inf).any(dim=-1)
    out = query.new_empty(candidates.shape)
    of_one = heads // max(key_heads, sharers)  # heads of a selection that share a key head
    size = wide * sites * (features + 2 * of_one * asking)
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
                    mass = torch.bmm(weight[cells].repeat(1, of_one)[:, None], mass)
                    total += mass.view(*ids.shape, sites).sum(dim=-1)
                    there |= exists[b, g][ids]
                out[b, s, cells] = total.masked_fill(~there, -torch.inf)
    return out


@second_look.register_fake
def _(
    query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, weight: Tensor, scale: float
) -> Tensor:
    return query.new_empty(candidates.shape)


second_look.register_vmap(fold_into_batch(second_look, batched=4))
