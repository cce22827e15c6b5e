"""Special tokens beside a space: every site reads them, and they read everything.

The sites attend to their selected blocks as if there were no tokens; what they read of the tokens
is merged into that by log-sum-exp. So the keys and values of the sites are only viewed, and every
backend serves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.problem import Problem, Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line
from ndgpa.structures.tokens import split_tokens

# Keys that the tokens read together, in blocks of so many.
_KEYS, _BLOCK = 2048, 64

Attend = Callable[..., tuple[Tensor, Tensor]]
Fields = tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]  # output and log-sum-exp


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

    def complete(self, near: Fields, scale: float, run: Attend, merge: Attend) -> Fields:
        """Complete what the sites read of their blocks by all that reads a token, or is one.

        Args:
            near: Output and log-sum-exp of the sites alone.
            scale: As a backend of `attend` takes it.
            run: A backend of `attend`.
            merge: How sites read tokens: `token_merge.merge_tokens`, or its plain formula.
        """
        if self.keys[0].shape[2]:
            near = merge(*near, self.sites[0].query, *self._tokens_to_read(), scale)
        if self.query.shape[2] == 0:
            return near
        prefix = self.problem.structure.prefix
        out, lse = (
            torch.cat([x[:, :, :prefix], y, x[:, :, prefix:]], dim=2)
            for x, y in zip(self._read_everything(scale, run), near)
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
        times = self.sites[0].structure.time, _time_of_tokens(key_structure)
        return *_contained(key, value, bias), *times

    def _read_everything(self, scale: float, run: Attend) -> Fields:
        """Attend from the tokens to every key: to each run of keys apart, then join the runs."""
        tokens, (count, device) = self.query.shape[2], (self.value.shape[2], self.value.device)
        keys = Line(count, min(_BLOCK, count), self.problem.key_structure.time, device)
        runs = -(-count // _KEYS)
        blocks = torch.arange(runs * -(-keys.num_blocks // runs), dtype=torch.int32, device=device)
        blocks = blocks.masked_fill(blocks >= keys.num_blocks, -1).view(runs, -1)
        time = _time_of_tokens(self.problem.structure)
        own = Line(runs * tokens, tokens, None if time is None else time.repeat(runs), device)
        out, lse = run(
            self.query.repeat(1, 1, runs, 1),
            self.problem.key,
            self.value,
            Selection(blocks.expand(len(self.query), 1, -1, -1)),
            own,
            keys,
            scale=scale,
            key_bias=self.key_bias,
            causal=self.problem.causal,
        )
        return _join(
            rearrange(out, "b h (r t) d -> b h r t d", r=runs),
            rearrange(lse, "b h (r t) -> b h r t", r=runs),
        )


def _join(out: Float[Tensor, "b h r t dv"], lse: Float[Tensor, "b h r t"]) -> Fields:
    """Join runs of keys that were attended to apart; 0 and -inf where nothing is seen."""
    masked = (lse == -torch.inf).all(dim=2)
    lse = lse.masked_fill(masked[:, :, None], 0)
    weight = lse.softmax(dim=2)[..., None]
    joined = (weight * out).sum(dim=2)  # 0 already where nothing is seen
    return joined.to(out.dtype), lse.logsumexp(dim=2).masked_fill(masked, -torch.inf)


def _contained(key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for a token that is not finite, and NaN as its bias: a weight of 0 hides no NaN.

    A token that is hidden stays hidden.
    """
    bad = ~(key.isfinite().all(dim=-1) & value.isfinite().all(dim=-1))
    key, value = (x.masked_fill(bad[..., None], 0) for x in (key, value))
    return key, value, bias.masked_fill(bad & (bias != -torch.inf), torch.nan)


def _time_of_tokens(structure: SpatialStructure) -> Int[Tensor, " tokens"] | None:
    if structure.time is None:
        return None
    end = structure.prefix + structure.inner.num_sites
    return torch.cat([structure.time[: structure.prefix], structure.time[end:]])
