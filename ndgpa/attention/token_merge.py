"""What sites read of special tokens, merged into what they read of their blocks.

The tokens and the near field are parts of one softmax: the near field is one key whose logit is its
log-sum-exp. Forward and backward are one operator each, in the memory of a few sites; nothing but
the inputs and the log-sum-exp is kept between them. The second derivative differentiates the plain
formula.

Letters: s sites, t tokens, g query heads that share a key head.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ndgpa._flops import attention, attention_backward, count_products
from ndgpa._ops import (
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    wide,
    without_autocast,
)
from ndgpa.attention.chunks import chunks

# Numbers of one chunk of outputs.
_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """What `merge_tokens` takes, in its order."""

    near: Tensor  # (b, h, s, dv)
    near_lse: Tensor  # (b, h, s), float32 or wider
    query: Tensor  # (b, h, s, d)
    key: Tensor  # (b, hk, t, d)
    value: Tensor  # (b, hk, t, dv)
    bias: Tensor  # (b, hk, t), float32 or wider; NaN for a token that makes who sees it NaN
    query_time: Tensor | None  # (s,)
    key_time: Tensor | None  # (t,)
    scale: float

    def part(self, sites: slice) -> "Inputs":
        """Cut out what concerns some of the sites."""
        time = None if self.query_time is None else self.query_time[sites]
        near, lse, query = (x[:, :, sites] for x in self[:3])
        return self._replace(near=near, near_lse=lse, query=query, query_time=time)

    @property
    def by_key_head(self) -> Tensor:  # (b, hk, g s, d)
        """The queries of all heads that share a key head, in float32 or wider."""
        query = self.query.to(self.near_lse.dtype)
        return rearrange(query, "b (k g) s d -> b k (g s) d", k=self.key.shape[1])

    def weights(self) -> tuple[Tensor, Tensor]:  # (b, h, 1 + t, s), (b, h, s)
        """The weights of the near field, which comes first, and of each token; log-sum-exp.

        Sites are side by side, so that a sum over a few tokens is as fast as its reads.
        """
        key = self.key.to(self.near_lse.dtype)
        logits = self.scale * (key @ self.by_key_head.mT) + self.bias[..., None]
        logits = rearrange(logits, "b k t (g s) -> b (k g) t s", s=self.query.shape[2])
        if self.query_time is not None and self.key_time is not None:
            later = self.key_time[:, None] > self.query_time
            logits = logits.masked_fill(later, -torch.inf)
        logits = torch.cat([self.near_lse[:, :, None], logits], dim=2)
        masked = logits.amax(dim=2) == -torch.inf
        logits = logits.masked_fill(masked[:, :, None], 0)
        lse = logits.logsumexp(dim=2)
        weights = (logits - lse[:, :, None]).exp().masked_fill(masked[:, :, None], 0)
        return weights, lse.masked_fill(masked, -torch.inf)

    def of_tokens(self, x: Tensor) -> Tensor:  # (b, h, 1 + t, s) -> (b, hk, t, g s)
        """What concerns the tokens."""
        return rearrange(x[:, :, 1:], "b (k g) t s -> b k t (g s)", k=self.key.shape[1])

    def of_heads(self, x: Tensor) -> Tensor:  # (b, hk, g s, y) -> (b, h, s, y)
        return rearrange(x, "b k (g s) y -> b (k g) s y", s=self.query.shape[2])

    def of_key_heads(self, x: Tensor) -> Tensor:  # (b, h, s, y) -> (b, hk, g s, y)
        return rearrange(x, "b (k g) s y -> b k (g s) y", k=self.key.shape[1])


def merged(given: Inputs) -> tuple[Tensor, Tensor]:  # (b, h, s, dv), (b, h, s)
    """The plain formula, in float32 or wider; 0 and -inf where nothing is seen. Differentiable."""
    weights, lse = given.weights()
    read = given.of_tokens(weights).mT @ given.value.to(lse.dtype)
    return torch.addcmul(
        given.of_heads(read), given.near.to(lse.dtype), weights[:, :, 0, :, None]
    ), lse


def formula(*inputs: Any) -> tuple[Tensor, Tensor]:
    """As `merged`, the output in the dtype of the near field: what the reference uses."""
    out, lse = merged(Inputs(*inputs))
    return out.to(inputs[0].dtype), lse


@torch.library.custom_op("ndgpa::merge_tokens", mutates_args=())
def merge_tokens(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As `merged`, the output in the dtype of `near`. Arguments as in `Inputs`."""
    given = Inputs(near, near_lse, query, key, value, bias, query_time, key_time, scale)
    out, lse = near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)
    with without_autocast(near):
        for sites in _chunks(near, key):
            out[:, :, sites], lse[:, :, sites] = merged(given.part(sites))
    return out, lse


@merge_tokens.register_fake
def _(near: Tensor, near_lse: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)


def _chunks(near: Tensor, key: Tensor) -> Iterator[slice]:
    numbers = max(1, math.prod(near.shape[:2]) * (near.shape[3] + 4 * key.shape[2]))
    return chunks(near.shape[2], max(1, _CHUNK["cuda" if near.is_cuda else "cpu"] // numbers))


@torch.library.custom_op("ndgpa::merge_tokens_backward", mutates_args=())
def merge_tokens_backward(
    grad_out: Tensor,  # (b, h, s, dv)
    grad_lse: Tensor,  # (b, h, s)
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    query_time: Tensor | None,
    key_time: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of near, near_lse, query, key, value and bias."""
    given = Inputs(near, near_lse, query, key, value, bias, query_time, key_time, scale)
    grads = _empty_grads(near, near_lse, query, key, value, bias)
    by_near, by_near_lse, by_query, by_key, by_value, by_bias = grads
    keys, values = key.to(near_lse.dtype), value.to(near_lse.dtype)
    with without_autocast(near):
        for sites in _chunks(near, key):
            own = given.part(sites)
            g = grad_out[:, :, sites].to(near_lse.dtype)
            weights, slope = _slope(own, g, grad_lse[:, :, sites], values)
            by_near[:, :, sites] = g * weights[:, :, 0, :, None]
            by_near_lse[:, :, sites] = slope[:, :, 0]
            by_logit = own.of_tokens(slope)
            by_query[:, :, sites] = own.of_heads(scale * (by_logit.mT @ keys))
            by_key += scale * (by_logit @ own.by_key_head)
            by_value += own.of_tokens(weights) @ own.of_key_heads(g)
            by_bias += by_logit.sum(dim=3)
    return *grads[:3], by_key.to(key.dtype), by_value.to(value.dtype), by_bias


def _slope(
    own: Inputs, grad_out: Tensor, grad_lse: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:  # (b, h, 1 + t, s), (b, h, 1 + t, s)
    """The weights, and the gradient of the logits of near field and tokens.

    Where times hide tokens, a site that is not finite and has no gradient sends none.
    """
    weights, _ = own.weights()
    near = (grad_out * own.near).sum(dim=-1)[:, :, None]
    read = value @ own.of_key_heads(grad_out).mT
    read = rearrange(read, "b k t (g s) -> b (k g) t s", s=near.shape[3])
    slope = torch.cat([near, read], dim=2)
    slope = weights * (slope - (weights * slope).sum(dim=2, keepdim=True) + grad_lse[:, :, None])
    if own.query_time is None:
        return weights, slope
    idle = ((grad_out == 0).all(dim=-1) & (grad_lse == 0))[:, :, None]
    return weights.masked_fill(idle, 0), slope.masked_fill(idle, 0)


@merge_tokens_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, *inputs: Any, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(*inputs[:6])
    key, value = inputs[3:5]
    return *grads[:3], grads[3].to(key.dtype), grads[4].to(value.dtype), grads[5]


def _empty_grads(
    near: Tensor, near_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go: sums over sites start at zero, in float32 or wider."""
    return (
        near.new_empty(near.shape),
        near_lse.new_empty(near_lse.shape),
        query.new_empty(query.shape),
        key.new_zeros(key.shape, dtype=wide(key)),
        value.new_zeros(value.shape, dtype=wide(value)),
        bias.new_zeros(bias.shape),
    )


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = merge_tokens_backward(grad_out, grad_lse, *kept_inputs(ctx))
    return gradients(Inputs, **dict(zip(Inputs._fields, grads)))


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, *inputs = kept_inputs(ctx)
    by_flows, by_inputs = differentiate_gradient(
        lambda given: formula(*given),
        Inputs(*inputs),
        Inputs._fields[:6],
        [grad_out, grad_lse],
        cotangents,
    )
    return *by_flows, *by_inputs


merge_tokens.register_autograd(_backward, setup_context=keep_inputs)
merge_tokens_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
merge_tokens.register_vmap(fold_into_batch(merge_tokens, batched=6))
merge_tokens_backward.register_vmap(fold_into_batch(merge_tokens_backward, batched=8))


@count_products("merge_tokens")
def _(near: Any, near_lse: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    return attention(math.prod(query[:3]) * key[2], query[3], near[3])


@count_products("merge_tokens_backward")
def _(grad_out: Any, grad_lse: Any, near: Any, lse: Any, query: Any, key: Any, *_: Any) -> int:
    return attention_backward(math.prod(query[:3]) * key[2], query[3], near[3])
