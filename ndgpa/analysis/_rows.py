"""Rows of the full affinity matrix, for a few queries at a time."""

from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.scores import Scores, offsets_of
from ndgpa.problem import Problem, dot_form, hide_keys
from ndgpa.structures.visible import visible


def logit_rows(
    problem: Problem, sites: Int[Tensor, " s"], scores: Scores | None = None
) -> Float[Tensor, "b h s n_k"]:
    """Compute the logits of the queries at `sites` for every key, -inf where a key is not seen.

    They are in float32 or wider. A euclidean affinity lacks its term |q|^2, which cancels in a
    softmax.
    """
    wide, mask = torch.promote_types(problem.query.dtype, torch.float32), problem.key_mask
    key = problem.key.to(wide)
    if mask is not None:
        key = key.masked_fill(~mask[:, None, :, None], 0)
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    if scores is not None and scores.key_bias is not None:
        bias = scores.key_bias.to(wide).expand(key.shape[:3])
    bias = hide_keys(bias, key, mask)
    rows = problem.query[:, :, sites].to(wide)
    rows = rearrange(rows, "b (k g) s d -> b k g s d", k=key.shape[1])
    logits = scale * einsum(rows, key, "b k g s d, b k y d -> b k g s y")
    if scores is not None and scores.softcap is not None:
        logits = scores.softcap * (logits / scores.softcap).tanh()
    if bias is not None:
        logits = logits + bias[:, :, None, None]
    logits = rearrange(logits, "b k g s y -> b (k g) s y")
    if scores is not None and scores.offset_bias is not None:
        spaces = problem.structure, problem.key_structure
        offsets = offsets_of(scores.offset_bias, *spaces, problem.query)
        logits = logits + offsets.table[:, :, offsets.of_query[sites, None] + offsets.of_key]
    seen = visible(problem.structure, problem.key_structure, problem.causal, sites)
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)


def check_sites(name: str, sites: Any, num_sites: int) -> None:
    arguments.int_vector(name, sites)
    if len(sites) and not 0 <= int(sites.min()) <= int(sites.max()) < num_sites:
        raise ValueError(
            f"{name} must be between 0 and {num_sites - 1}; got {int(sites.min())} to "
            f"{int(sites.max())}"
        )
