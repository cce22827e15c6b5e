"""Near and far field as parts of one softmax, a few sites at a time.

The far field of a site is one key: of a row of its own, or of the row of its block. Nothing of the
size of the output is made but the output and the gradients; the second derivative differentiates
the plain formula.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ndgpa._ops import fold_into_batch, without_autocast

# Numbers of one chunk of outputs.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


def merged(
    near: Tensor,  # (b, h, n, dv)
    near_lse: Tensor,  # (b, h, n)
    query: Tensor,  # (b, h, n, d)
    key: Tensor | None,  # (b, h, F, d)
    value: Tensor,  # (b, h, F, dv)
    bias: Tensor,  # (b, h, F)
    row: Tensor | None,  # (n,): the row of each site; None where that is its own number
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor]:  # (b, h, n, dv), (b, h, n)
    """The plain formula; 0 and -inf where nothing is seen. Differentiable.

    Args:
        contain: An output that is not finite and has no gradient sends none.
    """
    far, far_lse = _of_sites(query, key, value, bias, row, scale)
    top = torch.maximum(near_lse, far_lse).detach()
    top = top.masked_fill(top == -torch.inf, 0)
    parts = (near_lse - top).exp(), (far_lse - top).exp()
    total = parts[0] + parts[1]
    blind = total == 0
    total = total.masked_fill(blind, 1)
    near, bad = near.to(far.dtype), None
    if contain:
        bad = ~(near.isfinite() & far.isfinite())
        near, far = near.masked_fill(bad, 0), far.masked_fill(bad, 0)
    out = near * (parts[0] / total)[..., None] + far * (parts[1] / total)[..., None]
    if bad is not None:
        out = out.masked_fill(bad, torch.nan)
    return out, (top + total.log()).masked_fill(blind, -torch.inf)


def _of_sites(
    query: Tensor, key: Tensor | None, value: Tensor, bias: Tensor, row: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The value and the logit of each site's far key."""
    if row is not None:
        value, bias = value.index_select(2, row), bias.index_select(2, row)
    if key is None:
        return value, bias
    key = key if row is None else key.index_select(2, row)
    return value, bias + scale * (query * key).sum(dim=-1)


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
    out, lse = near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)
    with without_autocast(near):
        for sites in _chunks(near):
            own = _part(sites, near, near_lse, query, key, value, bias, row)
            out[:, :, sites], lse[:, :, sites] = merged(*(*own, scale, contain))
    return out, lse


@merge_far.register_fake
def _(
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
    return near.new_empty(near.shape), near_lse.new_empty(near_lse.shape)


def _chunks(near: Tensor) -> Iterator[slice]:
    numbers = max(1, near.shape[:2].numel() * near.shape[3])
    step = max(1, _CHUNK["cuda" if near.is_cuda else "cpu"] // numbers)
    for begin in range(0, near.shape[2], step):
        yield slice(begin, begin + step)


def _part(
    sites: slice,
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    row: Tensor | None,
) -> tuple[Any, ...]:
    """What concerns some of the sites."""
    near, near_lse, query = (x[:, :, sites] for x in (near, near_lse, query))
    if row is not None:
        return near, near_lse, query, key, value, bias, row[sites]
    key = None if key is None else key[:, :, sites]
    return near, near_lse, query, key, value[:, :, sites], bias[:, :, sites], None


@torch.library.custom_op("ndgpa::merge_far_backward", mutates_args=())
def merge_far_backward(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    grad_out: Tensor,  # (b, h, n, dv)
    grad_lse: Tensor,  # (b, h, n)
    lse: Tensor,  # (b, h, n): what the forward returned
    row: Tensor | None,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of near, near_lse, query, key, value and bias; those of query and key are empty
    where there is no key."""
    grads = _like(near, near_lse, query, key, value, bias)
    grad_near, grad_near_lse, grad_query, grad_key, grad_value, grad_bias = grads
    with without_autocast(near):
        for sites in _chunks(near):
            own = _part(sites, near, near_lse, query, key, value, bias, row)
            far, far_lse = _of_sites(*(*own[2:], scale))
            norm = lse[:, :, sites].masked_fill(lse[:, :, sites] == -torch.inf, 0)
            w_near, w_far = (own[1] - norm).exp(), (far_lse - norm).exp()
            g = grad_out[:, :, sites].to(far.dtype)
            by_near, by_far = (_dot(g, x, contain) for x in (own[0], far))
            mean = w_near * by_near + w_far * by_far - grad_lse[:, :, sites]
            by_lse = w_far * (by_far - mean)
            grad_near[:, :, sites] = g * w_near[..., None]
            grad_near_lse[:, :, sites] = w_near * (by_near - mean)
            _add(grad_value, sites, own[6], g * w_far[..., None])
            _add(grad_bias, sites, own[6], by_lse)
            if key is not None:
                of_logit = scale * by_lse[..., None]
                own_key = own[3] if row is None else own[3].index_select(2, own[6])
                grad_query[:, :, sites] = of_logit * own_key
                _add(grad_key, sites, own[6], of_logit * own[2])
    return grads


@merge_far_backward.register_fake
def _(
    near: Tensor,
    near_lse: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    bias: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    lse: Tensor,
    row: Tensor | None,
    scale: float,
    contain: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _like(near, near_lse, query, key, value, bias)


def _like(
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
    ctx.save_for_backward(*inputs[:6], output[1], inputs[6])
    ctx.options = inputs[7:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    *given, lse, row = ctx.saved_tensors
    grads = merge_far_backward(*given, grad_out, grad_lse, lse, row, *ctx.options)
    if given[3] is None:
        grads = *grads[:2], None, None, *grads[4:]
    return *grads, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8], inputs[9])
    ctx.options = inputs[10:]


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient of the plain formula, all sites at once."""
    *given, grad_out, grad_lse, row = ctx.saved_tensors
    places = [i for i, x in enumerate(given) if x is not None and (i != 2 or given[3] is not None)]
    second: list[Tensor | None] = [None] * 8
    with torch.enable_grad(), without_autocast(grad_out):
        inputs: list[Any] = [None if x is None else x.detach().requires_grad_() for x in given]
        flows = [x.detach().requires_grad_() for x in (grad_out, grad_lse)]
        near, near_lse, query, key, value, bias = inputs
        out, lse = merged(near, near_lse, query, key, value, bias, row, *ctx.options)
        leaves = [inputs[i] for i in places]
        outputs = out.to(grad_out.dtype), lse
        grads = torch.autograd.grad(outputs, leaves, flows, create_graph=True)
        along = [cotangents[i] for i in places]
        parts = torch.autograd.grad(grads, [*leaves, *flows], along, materialize_grads=True)
    for i, part in zip([*places, 6, 7], parts, strict=True):
        second[i] = part
    return *second, *[None] * 4


merge_far.register_autograd(_backward, setup_context=_save)
merge_far_backward.register_autograd(_backward_twice, setup_context=_save_backward)
merge_far.register_vmap(fold_into_batch(merge_far, batched=6))
merge_far_backward.register_vmap(fold_into_batch(merge_far_backward, batched=9))
