"""Linear attention by positive features, a chunk of sites at a time.

    out = phi(q) M / (phi(q) w),    M = sum over keys of phi(k) v^T,    w = sum over keys of phi(k)

Forward and backward are one opaque operator each: both pass over the keys, then over the queries,
and hold the features of one chunk. The second derivative differentiates the same formula in one
chunk that is everything.

Letters: m features, g query heads for each key head, c sites of a chunk.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndgpa._flops import count_products
from ndgpa._ops import (
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    wide,
    without_autocast,
)
from ndgpa.attention.chunks import chunks, room

KERNELS = ("softmax", "relu")

# Added to every feature of the kernel "relu".
_RELU_EPS = 1e-3


class Inputs(NamedTuple):
    """What `attend_by_features` takes, in its order."""

    query: Tensor  # (b, h, n, d)
    key: Tensor  # (b, hk, n_k, d)
    value: Tensor  # (b, hk, n_k, dv)
    key_mask: Tensor | None  # (b, n_k)
    projection: Tensor  # (m, d)
    scale: float
    eps: float
    kernel: str


@torch.library.custom_op("ndgpa::attend_by_features", mutates_args=())
def attend_by_features(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    projection: Tensor,
    scale: float,
    eps: float,
    kernel: str,
) -> Tensor:  # (b, h, n, dv)
    """The output. Arguments as in `Inputs`."""
    with without_autocast(query):
        problem = _Problem(Inputs(query, key, value, key_mask, projection, scale, eps, kernel))
        memory = problem.memory(problem.largest()[0])
        out = value.new_empty(*problem.query.shape[:4], value.shape[3])
        for chunk in problem.chunks(problem.query):
            out[..., chunk, :] = problem.read(chunk, *memory).out
    return out.flatten(1, 2)


@attend_by_features.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return value.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("ndgpa::attend_by_features_backward", mutates_args=())
def attend_by_features_backward(
    grad_out: Tensor,  # (b, h, n, dv)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    projection: Tensor,
    scale: float,
    eps: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (query, key, value))
    with without_autocast(query):
        problem = _Problem(Inputs(query, key, value, key_mask, projection, scale, eps, kernel))
        largest = problem.largest()
        memory = problem.memory(largest[0])
        by_memory = _back_to_memory(problem, memory, grad_out, grad_query)
        _back_to_keys(problem, largest, by_memory, grad_key, grad_value)
    return grad_query, grad_key, grad_value


@attend_by_features_backward.register_fake
def _(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@dataclass(frozen=True)
class _Features:
    exponents: Tensor  # (..., c, m)
    slope: Tensor  # (..., c, m): derivative of the features by the exponents
    features: Tensor  # (..., c, m)


@dataclass(frozen=True)
class _Read:
    of: _Features
    weight: Tensor  # (b, hk, g, c, 1): what the weights of the keys sum to, 1 in place of 0
    out: Tensor  # (b, hk, g, c, dv)


class _Problem:
    """The formula on chunks of sites; differentiable."""

    def __init__(self, given: Inputs) -> None:
        query, self.key, self.value = (
            x.contiguous() for x in (given.query, given.key, given.value)
        )
        self.query = query.unflatten(1, (self.key.shape[1], -1))  # (b, hk, g, n, d)
        self.unseen = None if given.key_mask is None else ~given.key_mask[:, None, :, None]
        self.wide = wide(query)
        self.projection = given.projection.to(self.wide)
        self.root, self.is_exp = math.sqrt(given.scale), given.kernel == "softmax"
        self.eps = given.eps if self.is_exp else _RELU_EPS

    def chunks(self, x: Tensor) -> Iterator[slice]:
        """Ranges of the sites of x that keep to the budget."""
        numbers = 2 * math.prod(x.shape[:-2]) * len(self.projection)  # features and their slopes
        return chunks(x.shape[-2], room(numbers, x))

    def exponents(self, x: Tensor) -> Tensor:  # (..., c, d) -> (..., c, m)
        x = x.to(self.wide) * self.root
        if not self.is_exp:
            return x @ self.projection.mT
        return x @ self.projection.mT - x.square().sum(dim=-1, keepdim=True) / 2

    def features(self, exponents: Tensor, largest: Tensor) -> _Features:
        if self.is_exp:
            slope = (exponents - largest).exp()
            return _Features(exponents, slope, slope + self.eps)
        return _Features(exponents, (exponents > 0).to(self.wide), exponents.relu() + self.eps)

    def back(self, x: Tensor, slope: Tensor) -> Tensor:
        """From the gradients of the exponents to those of x."""
        grad = self.root * (slope @ self.projection)
        if self.is_exp:
            grad = grad - self.root**2 * x.to(self.wide) * slope.sum(dim=-1, keepdim=True)
        return grad

    # Keys

    def largest(self) -> tuple[Tensor, Tensor]:  # (b, hk, 1, 1) twice
        """The largest exponent of the seen keys, and its place among (key, feature)."""
        best = place = None
        for chunk in self.chunks(self.key):
            exponents = self.exponents(self.key[..., chunk, :])
            if self.unseen is not None:
                exponents = exponents.masked_fill(self.unseen[..., chunk, :], -torch.inf)
            top, at = exponents.flatten(-2).max(dim=-1)
            at = at + (chunk.start or 0) * len(self.projection)
            if best is not None and place is not None:
                top, at = torch.maximum(top, best), torch.where(top > best, at, place)
            best, place = top, at
        assert best is not None
        assert place is not None
        best = best.masked_fill(best == -torch.inf, 0)  # nothing is seen
        return best[..., None, None], place[..., None, None]

    def key_features(self, chunk: slice, largest: Tensor) -> _Features:
        of = self.features(self.exponents(self.key[..., chunk, :]), largest)
        if self.unseen is None:
            return of
        unseen = self.unseen[..., chunk, :]
        hidden = (x.masked_fill(unseen, 0) for x in (of.slope, of.features))
        return _Features(of.exponents, *hidden)

    def memory(self, largest: Tensor) -> tuple[Tensor, Tensor]:  # (b, hk, m, dv), (b, hk, m, 1)
        """M and w."""
        shape = (*self.key.shape[:2], len(self.projection))
        total = self.value.new_zeros(*shape, self.value.shape[-1], dtype=self.wide)
        weight = total.new_zeros(*shape, 1)
        for chunk in self.chunks(self.key):
            features = self.key_features(chunk, largest).features
            total = total + features.mT @ self.value[..., chunk, :].to(self.wide)
            weight = weight + features.sum(dim=-2)[..., None]
        return total, weight

    # Queries

    def read(self, chunk: slice, total: Tensor, weight: Tensor) -> _Read:
        exponents = self.exponents(self.query[..., chunk, :])
        of = self.features(exponents, exponents.max(dim=-1, keepdim=True).values)
        weights = of.features @ weight[:, :, None]
        weights = weights.masked_fill(weights == 0, 1)
        return _Read(of, weights, of.features @ total[:, :, None] / weights)


def _back_to_memory(
    problem: _Problem, memory: tuple[Tensor, Tensor], grad_out: Tensor, grad_query: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the queries; return those of M and w."""
    total, weight = memory
    by_total, by_weight = torch.zeros_like(total), torch.zeros_like(weight)
    grad_out, grad_query = (x.unflatten(1, (weight.shape[1], -1)) for x in (grad_out, grad_query))
    for chunk in problem.chunks(problem.query):
        read = problem.read(chunk, total, weight)
        g = grad_out[..., chunk, :].to(total.dtype) / read.weight
        by_sum = -(g * read.out).sum(dim=-1, keepdim=True)
        slope = (g @ total[:, :, None].mT + by_sum * weight[:, :, None].mT) * read.of.slope
        if problem.is_exp:  # the largest exponent was subtracted from all
            place = read.of.exponents.argmax(dim=-1, keepdim=True)
            slope.scatter_add_(-1, place, -slope.sum(dim=-1, keepdim=True))
        grad_query[..., chunk, :] = problem.back(problem.query[..., chunk, :], slope)
        by_total += (read.of.features.mT @ g).sum(dim=2)
        by_weight += (read.of.features.mT @ by_sum).sum(dim=2)
    return by_total, by_weight


def _back_to_keys(
    problem: _Problem,
    largest: tuple[Tensor, Tensor],
    by_memory: tuple[Tensor, Tensor],
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Write the gradients of keys and values."""
    by_total, by_weight = by_memory
    by_largest = torch.zeros_like(largest[0])
    for chunk in problem.chunks(problem.key):
        of = problem.key_features(chunk, largest[0])
        value = problem.value[..., chunk, :].to(by_total.dtype)
        slope = (value @ by_total.mT + by_weight.mT) * of.slope
        grad_key[..., chunk, :] = problem.back(problem.key[..., chunk, :], slope)
        grad_value[..., chunk, :] = of.features @ by_total
        by_largest -= slope.sum(dim=(-2, -1), keepdim=True)
    if problem.is_exp:
        features = len(problem.projection)
        site, feature = largest[1] // features, largest[1] % features
        row = site.expand(-1, -1, 1, problem.key.shape[-1])
        slope = by_largest.new_zeros(*by_largest.shape[:3], features)
        slope = slope.scatter(-1, feature, by_largest)
        more = problem.back(problem.key.gather(2, row), slope)
        grad_key.scatter_add_(2, row, more.to(grad_key.dtype))


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value = attend_by_features_backward(grad_out, *kept_inputs(ctx))
    return gradients(Inputs, query=query, key=key, value=value)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the formula, one chunk that is everything."""
    grad_out, *given = kept_inputs(ctx)
    everything = slice(0, None)

    def formula(given: Inputs) -> Tensor:
        problem = _Problem(given)
        problem.chunks = lambda x: iter([everything])  # type: ignore[method-assign]
        memory = problem.memory(problem.largest()[0])
        return problem.read(everything, *memory).out.flatten(1, 2).to(given.value.dtype)

    by_grads, by_inputs = differentiate_gradient(
        formula, Inputs(*given), ("query", "key", "value"), [grad_out], cotangents
    )
    return *by_grads, *by_inputs


attend_by_features.register_autograd(_backward, setup_context=keep_inputs)
attend_by_features_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
attend_by_features.register_vmap(fold_into_batch(attend_by_features, batched=4))
attend_by_features_backward.register_vmap(fold_into_batch(attend_by_features_backward, batched=5))


@count_products("attend_by_features")
def _(query: Any, key: Any, value: Any, key_mask: Any, projection: Any, *_: Any, **__: Any) -> int:
    """Exponents of queries, and of keys twice, for the largest comes first; M; out and weight."""
    queries, keys = math.prod(query[:3]), math.prod(key[:3])
    exponents = (queries + 2 * keys) * query[3]
    return 2 * projection[0] * (exponents + keys * value[3] + queries * (value[3] + 1))


@count_products("attend_by_features_backward")
def _(grad_out: Any, *inputs: Any, **_: Any) -> int:
    """All of the forward; exponents of keys again; and back through each, the largest too."""
    given: Any = Inputs(*inputs)  # of shapes
    key, value = given.key, given.value
    queries, keys = math.prod(given.query[:3]), math.prod(key[:3])
    features, width = given.projection
    forward = (queries + 2 * keys) * width + keys * value[3] + queries * (value[3] + 1)
    to_memory = queries * (2 * value[3] + 1 + width)
    to_keys = keys * (2 * width + 2 * value[3])
    to_largest = math.prod(key[:2]) * width if given.kernel == "softmax" else 0
    return 2 * features * (forward + to_memory + to_keys + to_largest)
