"""The softmax under every engine has all its derivatives where logits tie."""

from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from ndgpa.attention.dense import attend_to_all
from ndgpa.attention.softmax import softmax


def test_the_log_sum_exp_of_two_equal_logits_bends_by_a_quarter() -> None:
    found = hessian(lambda x: softmax(x).lse.sum(), torch.zeros(1, 2, dtype=torch.float64))
    expected = torch.tensor([[1, -1], [-1, 1]], dtype=torch.float64) / 4
    torch.testing.assert_close(found[0, :, 0], expected)


def test_values_are_those_of_logsumexp_with_a_gradient_and_without() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    logits[0, 0], logits[1, 1, :4] = -torch.inf, -torch.inf
    expected = logits.logsumexp(dim=-1)
    for wanted in (False, True):
        found = softmax(logits.clone().requires_grad_(wanted)).lse
        torch.testing.assert_close(found, expected)


def test_runs_of_equal_keys_bend_as_one_row_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention to many keys is merged from runs by their log-sum-exp (Nystrom's, above 2,048)."""
    monkeypatch.setattr(import_module("ndgpa.attention.dense"), "_KEYS", 4)
    query, value = torch.randn(2, 1, 1, 12, 3, dtype=torch.float64)
    key = torch.ones(1, 1, 12, 3, dtype=torch.float64)
    ours, plain = (
        _second(call, query, key, value)
        for call in (
            lambda q, k, v: attend_to_all(q, k, v, scale=1.0),
            lambda q, k, v: (q @ k.mT).softmax(dim=-1) @ v,
        )
    )
    for mine, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, expected)


def _second(call, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    grads = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), leaves)
