"""Special tokens beside a space: every site reads them, and they read everything.

The sites attend to their selected blocks as if there were no tokens; what they read of the tokens
is merged into that by log-sum-exp. So the keys and values of the sites are only viewed, and every
backend serves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.attention.token_reads import contained, join
from ndgpa.problem import Problem, Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line
from ndgpa.structures.tokens import split_tokens

# Keys that the tokens read together, in blocks of so many.
_KEYS, _BLOCK = 2048, 64

Attend = Callable[..., tuple[Tensor, Tensor]]
Fields = tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]  # output and log-sum-exp
Completed = tuple[Float[Tensor, "b h all dv"], Float[Tensor, "b h all"]]  # of tokens too


class TokenBackend(NamedTuple):
    """How sites read tokens, as `token_merge.merge_tokens`, and tokens everything."""

    merge: Attend
    read: Attend


@dataclass(frozen=True)
class Tokens:
    """A call taken apart: `sites` is all of it, in views, where there are no tokens.

    Args:
        problem: The call as it came.
        value, key_bias: Of all keys; the bias as a backend of `attend` takes it.
        sites: The call of the sites alone, their values and biases.
        query: (b, h, tokens, d).
        keys: Key, value and bias of the tokens of the keys.
    """

    problem: Problem
    value: Float[Tensor, "b hk n_k dv"]
    key_bias: Float[Tensor, "b hk n_k"] | None
    sites: tuple[Problem, Tensor, Tensor | None]
    query: Float[Tensor, "b h t d"]
    keys: tuple[Tensor, Tensor, Tensor | None]

    @classmethod
    def of(cls, problem: Problem, value: Tensor, key_bias: Tensor | None) -> "Tokens":
        own, keys = problem.structure, problem.key_structure
        query, token_query = split_tokens(own, problem.query)
        key, token_key = split_tokens(keys, problem.key)
        site_value, token_value = split_tokens(keys, value)
        bias = token_bias = None
        if key_bias is not None:
            bias, token_bias = split_tokens(keys, key_bias)
        alone = replace(problem.without_tokens, query=query, key=key)
        tokens = token_key, token_value, token_bias
        return cls(problem, value, key_bias, (alone, site_value, bias), token_query, tokens)

    def complete(self, near: Fields, scale: float, backend: "TokenBackend") -> Completed:
        """Complete what the sites read of their blocks by all that reads a token, or is one.

        Args:
            near: Output and log-sum-exp of the sites alone.
            scale: As a backend of `attend` takes it.
        """
        if self.keys[0].shape[2]:
            near = backend.merge(*near, self.sites[0].query, *self._tokens_to_read(), scale)
        if self.query.shape[2] == 0:
            return near
        own, given = self.problem.structure, (self.problem.key, self.value, self.key_bias)
        time = time_of_tokens(own) if self.problem.causal else None
        key_time = self.problem.key_structure.time if self.problem.causal else None
        tokens = backend.read(self.query, *given, time, key_time, scale)
        out, lse = (
            torch.cat([x[:, :, : own.prefix], y, x[:, :, own.prefix :]], dim=2)
            for x, y in zip(tokens, near)
        )
        return out, lse

    def _tokens_to_read(self) -> tuple[Tensor | None, ...]:
        """Keys, values and biases of the tokens, and the times of sites and tokens."""
        key, value, bias = self.keys
        if bias is None:
            bias = key.new_zeros(key.shape[:3], dtype=wide(key))
        if not self.problem.causal:
            return key, value, bias, None, None
        key_structure = self.problem.key_structure
        times = self.sites[0].structure.time, time_of_tokens(key_structure)
        return *contained(key, value, bias), *times


def read_by_blocks(
    run: Attend,
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    key_bias: Float[Tensor, "b hk n_k"] | None,
    query_time: Int[Tensor, " t"] | None,
    key_time: Int[Tensor, " n_k"] | None,
    scale: float,
) -> Fields:
    """Attend from the tokens to every key by a backend of `attend`: to runs apart, then join."""
    tokens, count, device = query.shape[2], key.shape[2], key.device
    keys = Line(count, min(_BLOCK, count), key_time, device)
    runs = -(-count // _KEYS)
    blocks = torch.arange(runs * -(-keys.num_blocks // runs), dtype=torch.int32, device=device)
    blocks = blocks.masked_fill(blocks >= keys.num_blocks, -1).view(runs, -1)
    times = None if query_time is None else query_time.repeat(runs)
    out, lse = run(
        query.repeat(1, 1, runs, 1),
        key,
        value,
        Selection(blocks.expand(len(query), 1, -1, -1)),
        Line(runs * tokens, tokens, times, device),
        keys,
        scale=scale,
        key_bias=key_bias,
        causal=query_time is not None,
    )
    out, lse = join(
        rearrange(out, "b h (r t) d -> b h r t d", r=runs),
        rearrange(lse, "b h (r t) -> b h r t", r=runs),
    )
    return out.to(value.dtype), lse


def time_of_tokens(structure: SpatialStructure) -> Int[Tensor, " tokens"] | None:
    """Take the times of the tokens before and after the sites; None where there is no time."""
    if structure.time is None:
        return None
    end = structure.prefix + structure.inner.num_sites
    return torch.cat([structure.time[: structure.prefix], structure.time[end:]])
