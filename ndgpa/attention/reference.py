"""The definition, in a few lines of torch: any device, any floating dtype, any order of derivative.

It gathers keys and values for every cell at once, so it is for small problems, for checking the
other backends, and for their second derivatives.
"""

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.attention.scores import Offsets
from ndgpa.problem import Selection, check_block_ids
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import lookup


def reference(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    *,
    scale: float,
    key_bias: Float[Tensor, "b hk n_k"] | None = None,
    key_sites: Int[Tensor, "B S"] | None = None,
    causal: bool = False,
    offsets: Offsets | None = None,
    softcap: float = 0.0,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """Attend from each site to the sites of the blocks that its cell selected.

    Source: Phase 2 of Algorithm 1 of Jetchev et al. 2021.

    Args:
        key_bias: Added to every logit of a key, -inf for a key that does not exist.
        key_sites: The sites that are read where a block is selected, -1 for an empty place; a site
            may stand in several rows or in none. None means the blocks.
        causal: Keys of a later time than the query do not exist.
        offsets, softcap: What `Scores` say of pairs; a backend without them leaves them out of its
            signature, and is not given them. A cap of 0 is none.

    Returns:
        The output in the dtype of `value`, and the log-sum-exp of the logits in float32 or wider;
        0 and -inf for a query that sees nothing.
    """
    check_block_ids(selection.blocks, key_structure.num_blocks)
    heads, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    read = key_structure.blocks if key_sites is None else key_sites
    sites = rearrange(lookup(read, selection.blocks), "b hs c k r -> b hs c (k r)")
    sites = _per_head(sites, heads)
    q = structure.partition(query).to(wide)
    k = _take(_per_head(key.to(wide), heads), sites)  # so that gradients add up in it too
    v = _take(_per_head(value.to(wide), heads), sites)
    no_key = no_value = None
    if causal:  # the future has a weight of 0, and 0 NaN is NaN
        (k, no_key), (v, no_value) = _finite(k), _finite(v)
    logits = scale * einsum(q, k, "b h c x d, b h c y d -> b h c x y")
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    if offsets is not None:
        of_query = lookup(offsets.of_query[:, None], structure.cell_sites)
        entry = of_query + offsets.of_key[sites.clamp(min=0)][..., None, :]
        entry = entry.clamp(min=0).expand(*logits.shape)
        logits = logits + offsets.table.gather(2, entry.flatten(2)).view(logits.shape)
    if no_key is not None:
        logits = logits.masked_fill(no_key.any(dim=-1)[..., None, :], torch.nan)
    if key_bias is not None:
        bias = _take(_per_head(key_bias, heads)[..., None], sites)
        logits = logits + rearrange(bias, "b h c y 1 -> b h c 1 y")
    if selection.bias is not None:
        bias = _per_head(selection.bias, heads)
        logits = logits + repeat(bias, "b h c k -> b h c 1 (k r)", r=read.shape[1])
    hidden = (sites < 0)[..., None, :]
    if causal:
        assert structure.time is not None
        assert key_structure.time is not None
        now = lookup(structure.time[:, None], structure.cell_sites)  # (C, PR, 1)
        hidden = hidden | (key_structure.time[sites.clamp(min=0)][..., None, :] > now)
    logits = logits.masked_fill(hidden, -torch.inf)
    sees = (logits > -torch.inf).any(-1, keepdim=True) | logits.isnan().any(-1, keepdim=True)
    weights = logits.masked_fill(~sees, 0).softmax(dim=-1).masked_fill(~sees, 0)
    out = einsum(weights, v, "b h c x y, b h c y d -> b h c x d")
    if no_value is not None:
        weighed = (weights > 0).to(wide), no_value.to(wide)
        counts = einsum(*weighed, "b h c x y, b h c y d -> b h c x d")
        out = out.masked_fill(counts > 0, torch.nan)
    lse = (
        logits.masked_fill(~sees, 0).logsumexp(dim=-1, keepdim=True).masked_fill(~sees, -torch.inf)
    )
    return structure.compose(out.to(value.dtype)), structure.compose(lse)[..., 0]


def _finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for what is not finite, and where that was."""
    bad = ~x.isfinite()
    return x.masked_fill(bad, 0), bad


def _per_head(x: Tensor, heads: int) -> Tensor:  # (b, some heads, ...) -> (b, heads, ...)
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _take(x: Float[Tensor, "b h n d"], sites: Int[Tensor, "b h c y"]) -> Float[Tensor, "b h c y d"]:
    """Features of the sites named, zeros where a site is -1."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    head = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return x[batch, head, sites.clamp(min=0)].masked_fill((sites < 0)[..., None], 0)
