"""Special tokens beside a space: every site reads them, and they read everything.

The sites attend to their selected blocks as if there were no tokens; what they read of the tokens
is merged into that by log-sum-exp. So the keys and values of the sites are only viewed, and every
backend serves.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.problem import Problem, Selection, without_tokens
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line

# Sites that read the tokens together; keys that the tokens read together, in blocks of so many.
_QUERIES, _KEYS, _BLOCK = 256, 2048, 64

Attend = Callable[..., tuple[Tensor, Tensor]]


def merge_tokens(
    near: tuple[Float[Tensor, "b h s dv"], Float[Tensor, "b h s"]],
    problem: Problem,
    value: Float[Tensor, "b hk n_k dv"],
    *,
    scale: float,
    key_bias: Float[Tensor, "b hk n_k"] | None,
    run: Attend,
    merge: Attend,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """Complete what the sites read of their blocks by all that reads a token, or is one.

    Args:
        near: Output and log-sum-exp of the sites alone.
        problem: The call, tokens included.
        scale, key_bias: As a backend of `attend` takes them.
        run, merge: A backend of `attend`, and a function like `far_merge.merged`.
    """
    own, keys = problem.structure, problem.key_structure
    options: dict[str, Any] = {"scale": scale, "causal": problem.causal}
    if keys.inner is not keys:
        query, tokens = without_tokens(own, problem.query), _tokens(keys)
        given = (x.index_select(2, tokens) for x in (problem.key, value))
        bias = None if key_bias is None else key_bias.index_select(2, tokens)
        out, lse = _read_tokens(query, *given, own, keys, run, key_bias=bias, **options)
        out = out.to(wide(out))
        joined, lse = merge(*near, query, None, out, lse, None, scale, problem.causal)
        near = joined.to(value.dtype), lse
    if own.inner is own:
        return near
    query = problem.query.index_select(2, _tokens(own))
    given = query, problem.key, value, own, keys, run
    return _surround(near, _read_everything(*given, key_bias=key_bias, **options), own.prefix)


def _read_tokens(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b hk t d"],
    value: Float[Tensor, "b hk t dv"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    run: Attend,
    **options: Any,
) -> tuple[Float[Tensor, "b h s dv"], Float[Tensor, "b h s"]]:
    """Attend from the sites to all tokens."""
    sites, tokens, device = query.shape[2], key.shape[2], query.device
    own = Line(sites, min(_QUERIES, sites), structure.inner.time, device)
    keys = Line(tokens, tokens, _time_of_tokens(key_structure), device)
    blocks = torch.zeros(own.num_cells, 1, dtype=torch.int32, device=device)
    return run(query, key, value, _for_all(blocks, query), own, keys, **options)


def _read_everything(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    run: Attend,
    **options: Any,
) -> tuple[Float[Tensor, "b h t dv"], Float[Tensor, "b h t"]]:
    """Attend from the tokens to every key: to each run of keys apart, then join the runs."""
    tokens, count, device = query.shape[2], key.shape[2], query.device
    keys = Line(count, min(_BLOCK, count), key_structure.time, device)
    runs = -(-count // _KEYS)
    width = -(-keys.num_blocks // runs)
    blocks = torch.arange(runs * width, dtype=torch.int32, device=device)
    blocks = blocks.masked_fill(blocks >= keys.num_blocks, -1).view(runs, width)
    time = _time_of_tokens(structure)
    own = Line(runs * tokens, tokens, None if time is None else time.repeat(runs), device)
    query = query.repeat(1, 1, runs, 1)
    out, lse = run(query, key, value, _for_all(blocks, query), own, keys, **options)
    return _join(
        rearrange(out, "b h (r t) d -> b h r t d", r=runs),
        rearrange(lse, "b h (r t) -> b h r t", r=runs),
    )


def _join(
    out: Float[Tensor, "b h r t dv"], lse: Float[Tensor, "b h r t"]
) -> tuple[Float[Tensor, "b h t dv"], Float[Tensor, "b h t"]]:
    """Join runs of keys that were attended to apart; 0 and -inf where nothing is seen."""
    masked = (lse == -torch.inf).all(dim=2)
    lse = lse.masked_fill(masked[:, :, None], 0)
    weight = lse.softmax(dim=2)[..., None]
    joined = (weight * out).sum(dim=2)  # 0 already where nothing is seen
    return joined.to(out.dtype), lse.logsumexp(dim=2).masked_fill(masked, -torch.inf)


def _surround(
    near: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], prefix: int
) -> tuple[Tensor, Tensor]:
    """Put the sites between the prefix and the suffix."""
    out, lse = (
        torch.cat([x[:, :, :prefix], y, x[:, :, prefix:]], dim=2) for x, y in zip(tokens, near)
    )
    return out, lse


def _for_all(blocks: Int[Tensor, "C K"], like: Tensor) -> Selection:
    """One selection for all batches and heads."""
    return Selection(blocks.expand(len(like), 1, -1, -1))


def _tokens(structure: SpatialStructure) -> Int[Tensor, " tokens"]:
    """The numbers of the tokens."""
    sites = torch.arange(structure.num_sites, device=structure.device)
    end = structure.prefix + structure.inner.num_sites
    return torch.cat([sites[: structure.prefix], sites[end:]])


def _time_of_tokens(structure: SpatialStructure) -> Int[Tensor, " tokens"] | None:
    return None if structure.time is None else structure.time[_tokens(structure)]
