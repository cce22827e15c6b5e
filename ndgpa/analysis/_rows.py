"""Rows of the full affinity matrix, for a few queries at a time."""

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa.affinity import dot_form, hide_keys
from ndgpa.structures import SpatialStructure, visible


def logit_rows(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    sites: Int[Tensor, " s"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    scale: float,
    affinity: str,
    causal: bool,
    key_mask: Bool[Tensor, "b n_k"] | None,
) -> Float[Tensor, "b h s n_k"]:
    """The logits of the queries at `sites` against every key, -inf where a key is not seen.

    In float32 or wider. A euclidean affinity lacks its term |q|^2, which softmax does not see.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.to(wide)
    if key_mask is not None:
        key = key.masked_fill(~key_mask[:, None, :, None], 0)
    bias, scale = dot_form(key, affinity, scale)
    bias = hide_keys(bias, key, key_mask)
    rows = query[:, :, sites].to(wide)
    rows = rearrange(rows, "b (k g) s d -> b k g s d", k=key.shape[1])
    logits = scale * einsum(rows, key, "b k g s d, b k y d -> b k g s y")
    if bias is not None:
        logits = logits + bias[:, :, None, None]
    logits = rearrange(logits, "b k g s y -> b (k g) s y")
    seen = visible(structure, key_structure, causal, sites)
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)
