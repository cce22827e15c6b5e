"""Near and far field as parts of one softmax, a few sites at a time.

The far field of a site is one key: of a row of its own, or of the row of its block. Nothing of the
size of the output is made but the output and the gradients; the second derivative differentiates
the plain formula, all sites at once.
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

# Numbers of one chunk of outputs.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """Near field, queries and far field."""

    near: Tensor  # (b, h, n, dv)
    near_lse: Tensor  # (b, h, n)
    query: Tensor  # (b, h, n, d)
    key: Tensor | None  # (b, h, F, d); None where the bias is the whole logit
    value: Tensor  # (b, h, F, dv)
    bias: Tensor  # (b, h, F)
    row: Tensor | None  # (n,): the row of each site; None where that is its own number
    scale: float
    contain: bool  # an output that is not finite and has no gradient sends none

    def part(self, sites: slice) -> "Inputs":
        """Cut out what concerns some of the sites."""
        own = self._replace(**{x: getattr(self, x)[:, :, sites] for x in self._fields[:3]})
        if self.row is not None:
            return own._replace(row=self.row[sites])
        key = None if self.key is None else self.key[:, :, sites]
        return own._replace(key=key, value=self.value[:, :, sites], bias=self.bias[:, :, sites])

    def of_rows(self, x: Tensor) -> Tensor:
        """Take the row of each site."""
        return x if self.row is None else x.index_select(2, self.row)

    @property
    def far(self) -> tuple[Tensor, Tensor]:
        """The value and the logit of each site's far key."""
        value, bias = self.of_rows(self.value), self.of_rows(self.bias)
        if self.key is None:
            return value, bias
        return value, bias + self.scale * (self.query * self.of_rows(self.key)).sum(dim=-1)


def merged(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    row: Tensor | None,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    """The plain formula; 0 and -inf where nothing is seen. Differentiable.

    Arguments as in `Inputs`.
    """
    far, far_lse = Inputs(near, near_lse, query, key, value, bias, row, scale, contain).far
    top = torch.maximum(near_lse, far_lse).detach()
    top = top.masked_fill(top == -torch.inf, 0)
    parts = (near_lse - top).exp(), (far_lse - top).exp()
    total = parts[0] + parts[1]
    masked = total == 0
    total = total.masked_fill(masked, 1)
    near, bad = near.to(far.dtype), None
    if contain:
        bad = ~(near.isfinite() & far.isfinite())
        near, far = near.masked_fill(bad, 0), far.masked_fill(bad, 0)
    out = near * (parts[0] / total)[..., None] + far * (parts[1] / total)[..., None]
    if bad is not None:
        out = out.masked_fill(bad, torch.nan)
    return out, (top + total.log()).masked_fill(masked, -torch.inf)


@torch.library.custom_op("ndgpa::merge_far", mutates_args=())
def merge_far(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    row: Tensor | None,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor]:
    """As `merged`, the output in the dtype of `near`."""
    given = Inputs(near, near_lse, query, key, value, bias, row, scale, contain)
    out, lse = near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)
    with without_autocast(near):
        for sites in _chunks(near):
            out[:, :, sites], lse[:, :, sites] = merged(*given.part(sites))
    return out, lse


@merge_far.register_fake
def _(near: Tensor, near_lse: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)


def _chunks(near: Tensor) -> Iterator[slice]:
    numbers = max(1, near.shape[:2].numel() * near.shape[3])
    step = max(1, _CHUNK["cuda" if near.is_cuda else "cpu"] // numbers)
    for begin in range(0, near.shape[2], step):
        yield slice(begin, begin + step)


@torch.library.custom_op("ndgpa::merge_far_backward", mutates_args=())
def merge_far_backward(
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    lse: Tensor,  # (b, h, n): what the forward returned
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    row: Tensor | None,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of near, near_lse, query, key, value and bias.

    Those of query and key are empty where there is no key.
    """
    given = Inputs(near, near_lse, query, key, value, bias, row, scale, contain)
    grads = _empty_grads(near, near_lse, query, key, value, bias)
    grad_near, grad_near_lse, grad_query, grad_key, grad_value, grad_bias = grads
    with without_autocast(near):
        for sites in _chunks(near):
            own = given.part(sites)
            far, far_lse = own.far
            norm = lse[:, :, sites].masked_fill(lse[:, :, sites] == -torch.inf, 0)
            w_near, w_far = (own.near_lse - norm).exp(), (far_lse - norm).exp()
            g = grad_out[:, :, sites].to(far.dtype)
            by_near, by_far = (_dot(g, x, contain) for x in (own.near, far))
            mean = w_near * by_near + w_far * by_far - grad_lse[:, :, sites]
            by_logit = w_far * (by_far - mean)
            grad_near[:, :, sites] = g * w_near[..., None]
            grad_near_lse[:, :, sites] = w_near * (by_near - mean)
            _add(grad_value, sites, own.row, g * w_far[..., None])
            _add(grad_bias, sites, own.row, by_logit)
            if own.key is not None:
                slope = scale * by_logit[..., None]
                grad_query[:, :, sites] = slope * own.of_rows(own.key)
                _add(grad_key, sites, own.row, slope * own.query)
    return grads


@merge_far_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, lse: Tensor, *inputs: Any, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(*inputs[:6])


def _empty_grads(
    near: Tensor, near_lse: Tensor, query: Tensor, key: Tensor | None, value: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the gradients go: sums over sites start at zero."""
    return (
        near.new_empty(near.shape),
        near_lse.new_empty(near_lse.shape),
        query.new_empty(query.shape if key is not None else (0,)),
        bias.new_zeros(key.shape if key is not None else (0,)),
        value.new_zeros(value.shape),
        bias.new_zeros(bias.shape),
    )


def _dot(grad: Tensor, x: Tensor, contain: bool) -> Tensor:
    product = grad * x
    return (product.masked_fill(grad == 0, 0) if contain else product).sum(dim=-1)


def _add(total: Tensor, sites: slice, row: Tensor | None, part: Tensor) -> None:
    """Add to the rows of some sites, always in the same order."""
    if row is None:
        total[:, :, sites] = part
    elif total.is_cuda:  # index_add_ is atomic there; this sorts
        total.transpose(0, 2).index_put_((row,), part.transpose(0, 2), accumulate=True)
    else:
        total.index_add_(2, row, part)


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
    """What there are gradients of; without a key, the queries have no influence."""
    names = Inputs._fields[:6]
    return names if given.key is not None else tuple(n for n in names if n not in ("query", "key"))


merge_far.register_autograd(_backward, setup_context=_save)
merge_far_backward.register_autograd(_backward_twice, setup_context=_save_backward)
merge_far.register_vmap(fold_into_batch(merge_far, batched=6))
merge_far_backward.register_vmap(fold_into_batch(merge_far_backward, batched=9))
