"""Attention to every key in bounded memory, any order of derivative."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.attention.chunked import attend_from_cells
from ndgpa.problem import Selection

# Queries and keys of one tile of logits.
_QUERIES, _KEYS = 256, 2048


def attend_to_all(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    *,
    scale: float,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
) -> Float[Tensor, "b h n dv"]:
    """Softmax attention where queries or keys are few; 0 for a query that sees nothing.

    Many keys are cut into runs, every query attends to every run, and the outputs are weighed by
    what their runs sum to.
    """
    n = query.shape[2]
    key_bias = _bias(key, key_mask)
    query = _cut(query, _QUERIES)
    key, value = _cut(key, _KEYS), _cut(value, _KEYS)
    cells, runs = query.shape[2], key.shape[2]
    run = torch.arange(runs, dtype=torch.int32, device=query.device).repeat_interleave(cells)
    blocks = repeat(run, "c -> b h c 1", b=query.shape[0], h=query.shape[1])
    query = repeat(query, "b h c x d -> b h (r c) x d", r=runs)
    out, lse = attend_from_cells(query, key, value, Selection(blocks), scale, key_bias=key_bias)
    lse = rearrange(lse, "b h (r c) x -> b h r (c x) 1", r=runs)
    out = rearrange(out, "b h (r c) x d -> b h r (c x) d", r=runs)
    if runs == 1:
        return out[:, :, 0, :n]
    masked = (lse == -torch.inf).all(dim=2, keepdim=True)
    weight = lse.masked_fill(masked, 0).softmax(dim=2).masked_fill(masked, 0)
    return (weight * out).sum(dim=2)[:, :, :n].to(out.dtype)


def _cut(x: Tensor, size: int) -> Tensor:  # (b, h, n, d) -> (b, h, runs, at most size, d)
    """Runs of one length; zeros after the last site."""
    size = min(size, x.shape[2])
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _bias(key: Tensor, key_mask: Tensor | None) -> Tensor | None:  # (b, hk, runs, at most _KEYS)
    """-inf for a key that is not seen and for the places after the last; None for all seen."""
    ragged = -key.shape[2] % min(_KEYS, key.shape[2])
    if key_mask is None and not ragged:
        return None
    bias = key.new_zeros(key.shape[:3], dtype=wide(key))
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask[:, None], -torch.inf)
    bias = F.pad(bias, (0, ragged), value=-torch.inf)
    return bias.unflatten(2, (-1, min(_KEYS, key.shape[2])))
