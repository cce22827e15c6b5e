"""What the contract of backends compares: outputs and derivatives, and inputs that tie."""

from collections.abc import Sequence

import torch
from torch import Tensor

import ndgpa
from ndgpa.testing import draw


def derivatives(
    problem: draw.Problem,
    selection: ndgpa.Selection,
    backend: str,
    order: int = 2,
    lse: bool = True,
) -> list[Tensor]:
    """The outputs, the gradients of a fixed functional of them, and gradients of those."""
    inputs = [x.clone().requires_grad_() for x in problem.inputs]
    bias = None
    if selection.bias is not None:
        bias = selection.bias.clone().requires_grad_()
        inputs.append(bias)
    selection = ndgpa.Selection(selection.blocks, bias)
    query, key, value = inputs[:3]
    out, log_sum = ndgpa.attend(
        query,
        key,
        value,
        selection,
        problem.structure,
        backend=backend,
        return_lse=True,
        **problem.options,
    )
    log_sum = log_sum.masked_fill(log_sum == -torch.inf, 0)
    weight = _ramp(out)
    total = (out * weight).sum() + ((log_sum * _ramp(log_sum)).sum() if lse else 0)
    grads = torch.autograd.grad(total, inputs, create_graph=order > 1)
    results = [out.detach(), *(g.detach() for g in grads)]
    if lse:
        results.append(log_sum.detach())
    if order > 1:
        bend = sum(((g * _ramp(g)).sum() for g in grads), torch.zeros(()))
        second = torch.autograd.grad(bend, inputs, allow_unused=True)
        results += [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, second)]
    return results


def everything(problem: draw.Problem) -> ndgpa.Selection:
    blocks = torch.arange(problem.key_structure.inner.num_blocks, dtype=torch.int32)
    shape = (problem.query.shape[0], 1, problem.structure.inner.num_cells, len(blocks))
    return ndgpa.Selection(blocks.expand(shape))


def constant(x: Tensor) -> Tensor:
    return x[:, :, :1].expand_as(x)


def repeated(x: Tensor) -> Tensor:
    """The first half of the sites again."""
    half = x[:, :, : -(-x.shape[2] // 2)]
    return torch.cat([half, half], dim=2)[:, :, : x.shape[2]]


def _ramp(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, max(1, x.numel()), dtype=x.dtype)[: x.numel()].view(x.shape)


def plain_derivatives(problem: draw.Problem, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Dense attention in plain torch, in the dtype of the inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    repeats = leaves[0].shape[1] // leaves[1].shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in leaves[1:])
    out = (problem.logit_scale * leaves[0] @ key.mT).softmax(-1) @ value
    grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves)
    return [out.detach(), *grads]
