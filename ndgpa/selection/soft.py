"""Relevance with a gradient, for rules that learn what to select."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ndgpa.problem import Problem, Selection
from ndgpa.selection.coarse import by_cell, coarse_level
from ndgpa.selection.ranking import in_order
from ndgpa.selection.relevance import Share, selection_heads

# Coarse scores of one tile of cells; they are recomputed in the backward.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


def log_relevance(problem: Problem, share: Share = "head") -> Float[Tensor, "b hs C B_k"]:
    """The logarithm of each key block's share of the relevance of each cell, with its gradient.

    Differentiable in query and key to any order; -inf for a block that the cell may not choose.
    The table of cells and key blocks is held; coarse scores of single queries are not.

    Args:
        share: As for `TopK`.
    """
    coarse = coarse_level(problem)
    query, weight = by_cell(coarse, problem.structure)
    batch, heads, num_cells, places, _ = query.shape
    repeats = heads // coarse.key.shape[1]
    key = coarse.key.repeat_interleave(repeats, dim=1)
    added = torch.zeros((), dtype=query.dtype, device=query.device)
    if coarse.bias is not None:
        added = added + coarse.bias.repeat_interleave(repeats, dim=1)[:, :, None]
    if coarse.log_size is not None:
        added = added + coarse.log_size[:, None, None]
    scores = batch * heads * places * key.shape[2]  # of one cell
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // max(1, scores))
    parts = []
    for begin in range(0, num_cells, step):
        cells = slice(begin, begin + step)
        parts.append(
            checkpoint(
                _log_mass,
                query[:, :, cells] * coarse.scale,
                key,
                added,
                weight[:, cells].log(),
                _hidden(problem, cells),
                use_reentrant=False,
                preserve_rng_state=False,  # nothing is random in it
            )
        )
    by_head = torch.cat(parts, dim=2)
    count = selection_heads(share, heads, problem.key.shape[1])
    summed = _logsumexp(by_head.unflatten(1, (count, -1)), dim=2)
    seen = summed > -torch.inf
    total = _logsumexp(summed, dim=-1)[..., None].masked_fill(~seen.any(-1, keepdim=True), 0)
    return (summed - total).masked_fill(~seen, -torch.inf)


def _hidden(problem: Problem, cells: slice) -> Tensor | None:  # (c, B_k)
    """True where a cell may not choose a block."""
    structure, key_structure = problem.structure, problem.key_structure
    hidden = None
    if structure.cell_group is not None and key_structure.group is not None:
        hidden = structure.cell_group[cells, None] != key_structure.group
    if problem.causal:
        later = structure.cell_span[0][cells, None] < key_structure.block_span[1]
        hidden = later if hidden is None else hidden | later
    return hidden


def _log_mass(
    query: Tensor,  # (b, h, c, P, d), scaled
    key: Tensor,  # (b, h, B_k, d)
    added: Tensor,  # broadcasts with (b, h, 1, B_k)
    log_weight: Tensor,  # (b or 1, c, P), -inf for what takes no part
    hidden: Tensor | None,  # (c, B_k)
) -> Tensor:  # (b, h, c, B_k)
    places = query.shape[3]
    logits = query.flatten(2, 3) @ key.mT + added
    logits = logits.unflatten(2, (-1, places))
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None], -torch.inf)
    seen = logits > -torch.inf
    total = _logsumexp(logits, dim=-1)[..., None].masked_fill(~seen.any(-1, keepdim=True), 0)
    mass = (logits - total).masked_fill(~seen, -torch.inf) + log_weight[:, None, ..., None]
    return _logsumexp(mass, dim=3)


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """-inf, and no gradient instead of NaN, where there is nothing to sum."""
    nothing = (x == -torch.inf).all(dim=dim, keepdim=True)
    total = x.masked_fill(nothing, 0).logsumexp(dim=dim, keepdim=True)
    return total.masked_fill(nothing, -torch.inf).squeeze(dim)


def weighted(
    weight: Float[Tensor, "b hs C B_k"], at_most: int | None, problem: Problem
) -> Selection:
    """The blocks of positive weight, the heaviest first to be kept; the bias is log weight.

    So a block's keys count in the attention as its weight says. If causal, the blocks that a cell
    sees in part are read besides, at weight 1.
    """
    width = min(weight.shape[-1], weight.shape[-1] if at_most is None else at_most)
    ids = in_order(weight.detach(), descending=True, first=width)[1]
    ids = ids.sort(dim=-1).values
    chosen = weight.gather(-1, ids)
    empty = chosen <= 0
    bias = chosen.masked_fill(empty, 1).log()
    blocks = ids.masked_fill(empty, -1).int()
    if problem.causal:
        besides = problem.structure.overlapping(problem.key_structure).int()
        besides = besides.expand(*blocks.shape[:2], -1, -1)
        blocks = torch.cat([blocks, besides], dim=-1)
        bias = torch.cat([bias, bias.new_zeros(besides.shape)], dim=-1)
    return Selection(blocks, bias)
