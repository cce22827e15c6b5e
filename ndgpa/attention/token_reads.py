"""What special tokens read, which is everything: few queries, many keys, read where they lie.

The keys are cut into runs; the tokens attend to each run apart and the runs are joined by
log-sum-exp. Forward and backward are one operator each, in the memory of one run, which is a view
of the keys wherever the numbers of a row lie side by side: nothing is gathered. The second
derivative differentiates the plain formula.

Letters: t tokens, r runs, y keys of a run, g query heads that share a key head.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    call,
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    side_by_side,
    wide,
    without_autocast,
)
from ndgpa.attention.chunks import chunks
from ndgpa.attention.softmax import Softmax, softmax

# Keys of a run.
_KEYS = 2048


class Inputs(NamedTuple):
    """What `read_in_runs` takes, in its order."""

    query: Tensor  # (b, h, t, d)
    key: Tensor  # (b, hk, n_k, d)
    value: Tensor  # (b, hk, n_k, dv)
    key_bias: Tensor | None  # (b, hk, n_k), float32 or wider
    query_time: Tensor | None  # (t,)
    key_time: Tensor | None  # (n_k,)
    scale: float

    def part(self, run: slice) -> "Inputs":
        """Cut out some of the keys, in float32 or wider; the queries by key head, (b, hk, g t, d).

        Numbers of a row lie side by side: how a product lays out others is up to the processor's
        library, and rounds otherwise. Where times hide keys, one that is not finite is 0 and its
        bias NaN: 0 NaN is NaN.
        """
        dtype = wide(self.query)
        key, value = (side_by_side(x[:, :, run].to(dtype)) for x in (self.key, self.value))
        bias = None if self.key_bias is None else self.key_bias[:, :, run]
        time = None
        if self.key_time is not None:
            key, value, bias = contained(key, value, bias)
            time = self.key_time[run]
        query = rearrange(self.query.to(dtype), "b (k g) t d -> b k (g t) d", k=key.shape[1])
        query = side_by_side(query)
        return Inputs(query, key, value, bias, self.query_time, time, self.scale)

    def softmax(self) -> Softmax:  # (b, hk, g t, y)
        """The weights of a part."""
        logits = self.scale * (self.query @ self.key.mT)
        if self.key_bias is not None:
            logits = logits + self.key_bias[:, :, None]
        if self.query_time is not None and self.key_time is not None:
            groups = logits.shape[2] // len(self.query_time)
            later = self.key_time > self.query_time.repeat(groups)[:, None]
            logits = logits.masked_fill(later, -torch.inf)
        return softmax(
            logits, may_see_nothing=self.key_bias is not None or self.key_time is not None
        )


def contained(key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for a key that is not finite, and NaN as its bias: a weight of 0 hides no NaN.

    A key that is hidden stays hidden.
    """
    if bias is None:
        bias = key.new_zeros(key.shape[:3], dtype=wide(key))
    bad = ~(key.isfinite().all(dim=-1) & value.isfinite().all(dim=-1))
    key, value = (x.masked_fill(bad[..., None], 0) for x in (key, value))
    return key, value, bias.masked_fill(bad & (bias != -torch.inf), torch.nan)


def read_everything(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    *options: Any,
) -> tuple[Float[Tensor, "b h t dv"], Float[Tensor, "b h t"]]:
    """Attend from each token to every key that it may see. Arguments as in `Inputs`."""
    out, lse = call(read_in_runs, query, key, value, *options)
    joined, lse = join(out, lse)
    return joined.to(value.dtype), lse


def join(
    out: Float[Tensor, "b h r t dv"], lse: Float[Tensor, "b h r t"]
) -> tuple[Float[Tensor, "b h t dv"], Float[Tensor, "b h t"]]:
    """Join runs of keys that were attended to apart; 0 and -inf where nothing is seen."""
    masked = (lse == -torch.inf).all(dim=2)
    lse = lse.masked_fill(masked[:, :, None], 0)
    weight = lse.softmax(dim=2)[..., None]
    joined = (weight * out).sum(dim=2)  # 0 already where nothing is seen
    return joined, lse.logsumexp(dim=2).masked_fill(masked, -torch.inf)


def formula(given: Inputs) -> tuple[Tensor, Tensor]:
    """What `read_in_runs` computes; differentiable."""
    tokens, out, lse = given.query.shape[2], [], []
    for run in _runs(given.key):
        part = given.part(run)
        tile = part.softmax()
        out.append(_by_head(tile.weights @ part.value, tokens))
        lse.append(_by_head(tile.lse[..., None], tokens)[..., 0])
    return torch.stack(out, dim=2), torch.stack(lse, dim=2)


def _by_head(x: Tensor, tokens: int) -> Tensor:  # (b, hk, g t, y) -> (b, h, t, y)
    return rearrange(x, "b k (g t) y -> b (k g) t y", t=tokens)


def _runs(key: Tensor) -> Iterator[slice]:
    return chunks(key.shape[2], _KEYS)


@torch.library.custom_op("ndgpa::read_in_runs", mutates_args=())
def read_in_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:  # (b, h, r, t, dv), (b, h, r, t), both float32 or wider
    """Output and log-sum-exp of each run. Arguments as in `Inputs`."""
    with without_autocast(query):
        return formula(Inputs(query, key, value, key_bias, query_time, key_time, scale))


@read_in_runs.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _width = query.shape
    shape = batch, heads, -(-key.shape[2] // _KEYS), tokens
    return (
        query.new_empty(*shape, value.shape[3], dtype=wide(query)),
        query.new_empty(shape, dtype=wide(query)),
    )


@torch.library.custom_op("ndgpa::read_in_runs_backward", mutates_args=())
def read_in_runs_backward(
    grad_out: Tensor,  # (b, h, r, t, dv)
    grad_lse: Tensor,  # (b, h, r, t)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and key_bias (empty where None)."""
    given = Inputs(query, key, value, key_bias, query_time, key_time, scale)
    grads = _empty_grads(query, key, value, key_bias)
    by_query, by_key, by_value, by_bias = grads
    heads, tokens = key.shape[1], query.shape[2]
    with without_autocast(query):
        for place, run in enumerate(_runs(key)):
            own = given.part(run)
            flow = rearrange(grad_out[:, :, place], "b (k g) t y -> b k (g t) y", k=heads)
            of_lse = rearrange(grad_lse[:, :, place], "b (k g) t -> b k (g t) 1", k=heads)
            weights = own.softmax().weights
            slope = flow @ own.value.mT
            slope = weights * (slope - (weights * slope).sum(dim=-1, keepdim=True) + of_lse)
            if key_time is not None:  # what is not finite and has no gradient sends none
                idle = (flow == 0).all(dim=-1, keepdim=True) & (of_lse == 0)
                weights, slope = (x.masked_fill(idle, 0) for x in (weights, slope))
            by_query += _by_head(scale * (slope @ own.key), tokens)
            by_key[:, :, run] = scale * (slope.mT @ own.query)
            by_value[:, :, run] = weights.mT @ flow
            if key_bias is not None:
                by_bias[:, :, run] = slope.sum(dim=2)
    return by_query.to(query.dtype), by_key, by_value, by_bias


@read_in_runs_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_query, by_key, by_value, by_bias = _empty_grads(query, key, value, key_bias)
    return by_query.to(query.dtype), by_key, by_value, by_bias


def _empty_grads(
    query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go: the sum over runs starts at zero, in float32 or wider."""
    return (
        query.new_zeros(query.shape, dtype=wide(query)),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        query.new_empty((0,) if key_bias is None else key_bias.shape, dtype=wide(query)),
    )


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    given = Inputs(*kept_inputs(ctx))
    query, key, value, bias = read_in_runs_backward(grad_out, grad_lse, *given)
    by_bias = None if given.key_bias is None else bias
    return gradients(Inputs, query=query, key=key, value=value, key_bias=by_bias)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, *inputs = kept_inputs(ctx)
    by_flows, by_inputs = differentiate_gradient(
        formula, Inputs(*inputs), Inputs._fields[:4], [grad_out, grad_lse], cotangents
    )
    return *by_flows, *by_inputs


read_in_runs.register_autograd(_backward, setup_context=keep_inputs)
read_in_runs_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
read_in_runs.register_vmap(fold_into_batch(read_in_runs, batched=4))
read_in_runs_backward.register_vmap(fold_into_batch(read_in_runs_backward, batched=6))


@count_products("read_in_runs")
def _(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return attention(math.prod(query[:3]) * key[2], query[3], value[3])


@count_products("read_in_runs_backward")
def _(grad_out: Any, grad_lse: Any, query: Any, key: Any, value: Any, *_: Any) -> int:
    return attention_backward(math.prod(query[:3]) * key[2], query[3], value[3])
