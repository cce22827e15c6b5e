"""Where the attention of given queries goes."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa.analysis._rows import check_sites, logit_rows
from ndgpa.attention.scores import Scores, check_scores
from ndgpa.problem import Affinity, Problem, Selection, check_block_ids, check_selection
from ndgpa.structures import SpatialStructure
from ndgpa.structures.tokens import check_no_tokens


@torch.no_grad()
def key_weights(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    selection: Selection,
    structure: SpatialStructure,
    sites: Int[Tensor, " s"],
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    scores: Scores | None = None,
) -> tuple[Int[Tensor, "b h s y"], Float[Tensor, "b h s y"]]:
    """Return the keys that given queries read in `ndgpa.attend`, and the softmax weight of each.

    Args:
        query, key, structure, key_structure, scale, affinity, causal, key_mask, scores: As for
            `ndgpa.gpa`.
        selection: From `ndgpa.select`, or built from block ids; its bias counts.
        sites: The sites of the queries.

    Returns:
        Key sites, int64, -1 for an empty place or a key that is not seen. Weights, in float32 or
        wider, which sum to 1 over the keys of a query and are 0 where the site is -1. All are 0 for
        a query that sees nothing.

    Raises:
        ValueError, TypeError: An argument does not fit the others; nothing has been computed.
    """
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
    )
    structure, key_structure = problem.structure, problem.key_structure
    check_selection(selection, query, key, structure)
    check_scores(scores, problem, None, None)
    check_no_tokens("key_weights", structure, key_structure)
    check_sites("sites", sites, structure.num_sites)
    if not selection.blocks.is_cuda:
        check_block_ids(selection.blocks, key_structure.num_blocks)
    sites = sites.to(query.device).long()
    rows = logit_rows(problem, sites, scores)
    cells = structure.cell_of_site[sites]
    key_sites = rearrange(
        key_structure.upsample(selection.blocks[:, :, cells]), "b hs s k r -> b hs s (k r)"
    )
    key_sites = _per_head(key_sites, query.shape[1])
    logits = rows.gather(-1, key_sites.clamp(min=0))
    if selection.bias is not None:
        bias = selection.bias[:, :, cells].to(rows.dtype)
        bias = repeat(bias, "b hs s k -> b hs s (k r)", r=key_structure.sites_per_block)
        logits = logits + _per_head(bias, query.shape[1])
    unseen = (key_sites < 0) | (logits == -torch.inf)
    logits = logits.masked_fill(unseen, -torch.inf)
    sees_none = unseen.all(dim=-1, keepdim=True)
    weights = logits.masked_fill(sees_none, 0).softmax(dim=-1).masked_fill(unseen, 0)
    return key_sites.masked_fill(unseen, -1), weights


def _per_head(x: Tensor, heads: int) -> Tensor:  # (b, some heads, ...) -> (b, heads, ...)
    return x.repeat_interleave(heads // x.shape[1], dim=1)
