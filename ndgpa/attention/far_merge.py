"""Two fields as parts of one softmax, a few sites at a time.

Nothing of the size of the output is made but the output and the gradients; the second derivative
differentiates the plain formula, all sites at once.
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
from ndgpa.attention.chunks import chunks

# Numbers of one chunk of outputs.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """What each field reads, and its log-sum-exp: what `merge_far` takes, in its order."""

    near: Tensor  # (b, h, n, dv)
    near_lse: Tensor  # (b, h, n)
    far: Tensor  # (b, h, n, dv), float32 or wider
    far_lse: Tensor  # (b, h, n)
    contain: bool  # an output that is not finite and has no gradient sends none

    def part(self, sites: slice) -> "Inputs":
        """Cut out some of the sites, in the dtype of the far field."""
        near, near_lse, far, far_lse = (x[:, :, sites].to(self.far.dtype) for x in self[:4])
        return Inputs(near, near_lse, far, far_lse, self.contain)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:  # three times (b, h, n)
        """The weights of near and far field, and the log-sum-exp, -inf where nothing is seen."""
        top = torch.maximum(self.near_lse, self.far_lse).detach()
        top = top.masked_fill(top == -torch.inf, 0)
        near, far = (self.near_lse - top).exp(), (self.far_lse - top).exp()
        total = near + far
        masked = total == 0
        total = total.masked_fill(masked, 1)
        return near / total, far / total, (top + total.log()).masked_fill(masked, -torch.inf)

    @property
    def bad(self) -> Tensor:  # (b, h, n, dv)
        return ~(self.near.isfinite() & self.far.isfinite())


def merged(
    near: Tensor, near_lse: Tensor, far: Tensor, far_lse: Tensor, contain: bool
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    """The plain formula, the output in the dtype of `near`; 0 and -inf where nothing is seen."""
    out, lse = _merged(Inputs(near, near_lse, far, far_lse, contain).part(slice(None)))
    return out.to(near.dtype), lse


def _merged(own: Inputs) -> tuple[Tensor, Tensor]:
    by_near, by_far, lse = own.weights()
    near, far = own.near, own.far
    if own.contain:
        near, far = near.masked_fill(own.bad, 0), far.masked_fill(own.bad, 0)
    out = by_near[..., None] * near + by_far[..., None] * far
    return out.masked_fill(own.bad, torch.nan) if own.contain else out, lse


@torch.library.custom_op("ndgpa::merge_far", mutates_args=())
def merge_far(
    near: Tensor, near_lse: Tensor, far: Tensor, far_lse: Tensor, contain: bool
) -> tuple[Tensor, Tensor]:
    """As `merged`. Arguments as in `Inputs`."""
    given = Inputs(near, near_lse, far, far_lse, contain)
    out, lse = near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)
    with without_autocast(near):
        for sites in _chunks(near):
            out[:, :, sites], lse[:, :, sites] = _merged(given.part(sites))
    return out, lse


@merge_far.register_fake
def _(near: Tensor, near_lse: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)


def _chunks(near: Tensor) -> Iterator[slice]:
    numbers = max(1, near.shape[:2].numel() * near.shape[3])
    return chunks(near.shape[2], max(1, _CHUNK["cuda" if near.is_cuda else "cpu"] // numbers))


@torch.library.custom_op("ndgpa::merge_far_backward", mutates_args=())
def merge_far_backward(
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    near: Tensor,
    near_lse: Tensor,
    far: Tensor,
    far_lse: Tensor,
    contain: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of near, near_lse, far and far_lse."""
    given = Inputs(near, near_lse, far, far_lse, contain)
    grads = _empty_grads(*given[:4])
    with without_autocast(near):
        for sites in _chunks(near):
            own = given.part(sites)
            by_near, by_far, _ = own.weights()
            g = grad_out[:, :, sites].to(far.dtype)
            slopes = _dot(g, own.near, contain), _dot(g, own.far, contain)
            mean = by_near * slopes[0] + by_far * slopes[1] - grad_lse[:, :, sites]
            grads[0][:, :, sites] = g * by_near[..., None]
            grads[1][:, :, sites] = by_near * (slopes[0] - mean)
            grads[2][:, :, sites] = g * by_far[..., None]
            grads[3][:, :, sites] = by_far * (slopes[1] - mean)
    return grads


@merge_far_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, *inputs: Any, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(*inputs[:4])


def _empty_grads(*xs: Tensor) -> Any:
    return tuple(x.new_empty(x.shape) for x in xs)


def _dot(grad: Tensor, x: Tensor, contain: bool) -> Tensor:
    product = grad * x
    return (product.masked_fill(grad == 0, 0) if contain else product).sum(dim=-1)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = merge_far_backward(grad_out, grad_lse, *kept_inputs(ctx))
    return gradients(Inputs, **dict(zip(Inputs._fields, grads)))


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, *inputs = kept_inputs(ctx)
    by_flows, by_inputs = differentiate_gradient(
        lambda given: merged(*given),
        Inputs(*inputs),
        Inputs._fields[:4],
        [grad_out, grad_lse],
        cotangents,
    )
    return *by_flows, *by_inputs


merge_far.register_autograd(_backward, setup_context=keep_inputs)
merge_far_backward.register_autograd(_backward_twice, setup_context=keep_inputs)
merge_far.register_vmap(fold_into_batch(merge_far, batched=4))
merge_far_backward.register_vmap(fold_into_batch(merge_far_backward, batched=6))
