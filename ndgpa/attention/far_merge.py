"""Near and far field as parts of one softmax, a few rows at a time.

The far field of a row is one key for each bundle; a row is a site of its own, or the sites of a
block or cell. Nothing of the size of the output is made but the output and the gradients; the
second derivative differentiates the plain formula, all rows at once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndgpa._ops import (
    differentiate_gradient,
    fold_into_batch,
    gradients,
    keep_inputs,
    kept_inputs,
    without_autocast,
)
from ndgpa.structures.tables import is_full, place_of_member

# Numbers of one chunk of outputs.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """Near field, queries and far field."""

    near: Tensor  # (b, h, n, dv)
    near_lse: Tensor  # (b, h, n)
    query: Tensor  # (b, h, n, d)
    mean: Tensor | None  # (b, h, F, d): the query of each row; None where the bias is the logit
    value: Tensor  # (b, h, F, G, dv), and with a mean the keys besides, (b, h, F, G, dv + d)
    bias: Tensor  # (b, h, F, G)
    sites: Tensor  # (F, X): the sites of each row, -1 for an empty place; each site is in one
    scale: float
    contain: bool  # an output that is not finite and has no gradient sends none

    def part(self, rows: slice) -> "Inputs":
        """Cut out what concerns some of the rows."""
        return self._replace(
            near=self.lay_out(self.near, rows),
            near_lse=self.lay_out(self.near_lse, rows),
            query=self.lay_out(self.query, rows),
            mean=None if self.mean is None else self.mean[:, :, rows],
            value=self.value[:, :, rows],
            bias=self.bias[:, :, rows],
        )

    def lay_out(self, x: Tensor, rows: slice) -> Tensor:  # (b, h, n, ...) -> (b, h, f, X, ...)
        """Take the sites of rows in the dtype of the far field; any site in empty places."""
        own = self.sites[rows]
        taken = x.index_select(2, own.flatten().clamp(min=0)).unflatten(2, own.shape)
        return taken.to(self.value.dtype)

    @property
    def far_value(self) -> Tensor:  # (b, h, f, G, dv)
        return self.value[..., : self.near.shape[-1]]

    @property
    def key(self) -> Tensor:  # (b, h, f, G, d)
        return self.value[..., self.near.shape[-1] :]

    @property
    def moved(self) -> Tensor:  # (b, h, f, X, d)
        """How far each site is from the query of its row."""
        assert self.mean is not None
        return self.query - self.mean[..., None, :]

    def room(self, like: Tensor) -> Tensor:
        """Make room for what `put` writes: one site more if there are empty places."""
        sites = like.shape[2] + (not is_full(self.sites))
        return like.new_empty(*like.shape[:2], sites, *like.shape[3:])

    def put(self, x: Tensor, rows: slice, part: Tensor) -> None:
        """Write the sites of rows; what stands in empty places goes to the last."""
        own = self.sites[rows].flatten()
        x.index_copy_(2, own.where(own >= 0, x.shape[2] - 1), part.flatten(2, 3).to(x.dtype))

    def written(self, x: Tensor) -> Tensor:
        """Drop the site that `room` added."""
        sites = self.query.shape[2]
        return x if x.shape[2] == sites else x[:, :, :sites].contiguous()


class _Far(NamedTuple):
    """The softmax of a near field and far keys."""

    near: Tensor  # (b, h, f, X): weights
    far: Tensor  # (b, h, f, X, G)
    lse: Tensor  # (b, h, f, X), -inf where nothing is seen


def _softmax(own: Inputs) -> _Far:
    logits = own.bias[..., None, :]
    if own.mean is not None:
        logits = logits + own.scale * _matmul(own.moved, own.key.mT)
    logits = logits.expand(*own.near_lse.shape, logits.shape[-1])
    top = torch.maximum(own.near_lse, logits.amax(dim=-1)).detach()
    top = top.masked_fill(top == -torch.inf, 0)
    near, far = (own.near_lse - top).exp(), (logits - top[..., None]).exp()
    total = near + far.sum(dim=-1)
    masked = total == 0
    total = total.masked_fill(masked, 1)
    lse = (top + total.log()).masked_fill(masked, -torch.inf)
    return _Far(near / total, far / total[..., None], lse)


def merge_rows(own: Inputs) -> tuple[Tensor, Tensor]:  # (b, h, f, X, dv), (b, h, f, X)
    """The plain formula, by row; 0 and -inf where nothing is seen. Differentiable."""
    weights = _softmax(own)
    near, far, bad = own.near, own.far_value, None
    if own.contain:
        bad = ~near.isfinite() | ~far.isfinite().all(dim=3, keepdim=True)
        near, far = near.masked_fill(bad, 0), far.masked_fill(~far.isfinite(), 0)
    out = weights.near[..., None] * near + _matmul(weights.far, far)
    if bad is not None:
        out = out.masked_fill(bad, torch.nan)
    return out, weights.lse


def merged(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    mean: Tensor | None,
    value: Tensor,
    bias: Tensor,
    sites: Tensor,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    """The plain formula, all rows at once. Arguments as in `Inputs`."""
    given = Inputs(near, near_lse, query, mean, value, bias, sites, scale, contain)
    out, lse = merge_rows(given.part(slice(None)))
    place = place_of_member(sites, near.shape[2])
    return out.flatten(2, 3).index_select(2, place), lse.flatten(2, 3).index_select(2, place)


@torch.library.custom_op("ndgpa::merge_far", mutates_args=())
def merge_far(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    mean: Tensor | None,
    value: Tensor,
    bias: Tensor,
    sites: Tensor,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor]:
    """As `merged`, the output in the dtype of `near`."""
    given = Inputs(near, near_lse, query, mean, value, bias, sites, scale, contain)
    out, lse = given.room(near), given.room(near_lse)
    with without_autocast(near):
        for rows in _chunks(given):
            for x, part in zip((out, lse), merge_rows(given.part(rows))):
                given.put(x, rows, part)
    return given.written(out), given.written(lse)


@merge_far.register_fake
def _(near: Tensor, near_lse: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)


def _chunks(given: Inputs) -> Iterator[slice]:
    near, (rows, places) = given.near, given.sites.shape
    numbers = max(1, near.shape[:2].numel() * places * (near.shape[3] + given.bias.shape[3]))
    step = max(1, _CHUNK["cuda" if near.is_cuda else "cpu"] // numbers)
    for begin in range(0, rows, step):
        yield slice(begin, begin + step)


@torch.library.custom_op("ndgpa::merge_far_backward", mutates_args=())
def merge_far_backward(
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    lse: Tensor,  # (b, h, n): what the forward returned
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    mean: Tensor | None,
    value: Tensor,
    bias: Tensor,
    sites: Tensor,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of near, near_lse, query, mean, value and bias.

    Those of query and mean are empty where there is no mean.
    """
    given = Inputs(near, near_lse, query, mean, value, bias, sites, scale, contain)
    grads = _empty_grads(near, near_lse, query, mean, value, bias)
    grad_near, grad_near_lse, grad_query, grad_mean, grad_value, grad_bias = grads
    by_site = [given.room(x) for x in (near, near_lse, query if mean is not None else near_lse)]
    with without_autocast(near):
        for rows in _chunks(given):
            own = given.part(rows)
            weights = _softmax(own)
            empty = given.sites[rows] < 0
            g = given.lay_out(grad_out, rows).masked_fill_(empty[..., None], 0)
            g_lse = given.lay_out(grad_lse, rows).masked_fill_(empty, 0)
            by_near = _dot(g, own.near, contain)
            far = own.far_value
            far = far.nan_to_num(0.0, 0.0, 0.0) if contain else far
            by_far = _matmul(g, far.mT)  # (b, h, f, X, G)
            out = weights.near * by_near + (weights.far * by_far).sum(dim=-1)
            out.sub_(g_lse)
            slope = by_far.sub_(out[..., None]).mul_(weights.far)
            given.put(by_site[0], rows, g * weights.near[..., None])
            given.put(by_site[1], rows, weights.near * (by_near - out))
            grad_value[:, :, rows, :, : near.shape[3]] = _matmul(weights.far.mT, g)
            grad_bias[:, :, rows] = slope.sum(dim=3)
            if own.mean is not None:
                slope = given.scale * slope
                by_query = _matmul(slope, own.key)
                given.put(by_site[2], rows, by_query)
                grad_mean[:, :, rows] = -by_query.sum(dim=3)
                grad_value[:, :, rows, :, near.shape[3] :] = _matmul(slope.mT, own.moved)
    grad_near, grad_near_lse, of_query = (given.written(x) for x in by_site)
    if mean is not None:
        grad_query = of_query
    return grad_near, grad_near_lse, grad_query, grad_mean, grad_value, grad_bias


@merge_far_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, lse: Tensor, *inputs: Any, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(*inputs[:6])


def _empty_grads(
    near: Tensor, near_lse: Tensor, query: Tensor, mean: Tensor | None, value: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go."""
    return (
        near.new_empty(near.shape),
        near_lse.new_empty(near_lse.shape),
        query.new_empty(query.shape if mean is not None else (0,)),
        bias.new_empty(mean.shape if mean is not None else (0,)),
        value.new_empty(value.shape),
        bias.new_empty(bias.shape),
    )


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same as a @ b, without a call for each of many products of a row and a column."""
    if a.shape[-1] == 1:
        return a * b
    if a.shape[-2] == b.shape[-1] == 1:
        return (a * b.mT).sum(dim=-1, keepdim=True)
    return a @ b


def _dot(grad: Tensor, x: Tensor, contain: bool) -> Tensor:
    product = grad * x
    return (product.masked_fill(grad == 0, 0) if contain else product).sum(dim=-1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    keep_inputs(ctx, (output[1], *inputs))


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    lse, *inputs = kept_inputs(ctx)
    given = Inputs(*inputs)
    grads = merge_far_backward(grad_out, grad_lse, lse, *given)
    return gradients(Inputs, **{n: g for n, g in zip(Inputs._fields, grads) if n in _by(given)})


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, (*inputs[:2], *inputs[3:]))  # the formula makes lse again


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, *inputs = kept_inputs(ctx)
    given = Inputs(*inputs)

    def formula(given: Inputs) -> tuple[Tensor, Tensor]:
        out, lse = merged(*given)
        return out.to(grad_out.dtype), lse

    along = dict(zip(Inputs._fields, cotangents))
    names = _by(given)
    by_flows, by_inputs = differentiate_gradient(
        formula, given, names, [grad_out, grad_lse], [along[name] for name in names]
    )
    return *by_flows, None, *by_inputs


def _by(given: Inputs) -> tuple[str, ...]:
    """What there are gradients of; without a mean, the queries have no influence."""
    names = Inputs._fields[:6]
    return (
        names if given.mean is not None else tuple(n for n in names if n not in ("query", "mean"))
    )


merge_far.register_autograd(_backward, setup_context=_save)
merge_far_backward.register_autograd(_backward_twice, setup_context=_save_backward)
merge_far.register_vmap(fold_into_batch(merge_far, batched=6))
merge_far_backward.register_vmap(fold_into_batch(merge_far_backward, batched=9))
