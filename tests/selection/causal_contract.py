"""What every causal rule must satisfy: nothing at time t depends on a later time, bit for bit."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from tests import draw


class CausalContract:
    """Inherit and say how to draw a rule for a problem whose structures have time."""

    @staticmethod
    def causal_rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        raise NotImplementedError

    @staticmethod
    def options(data: Any) -> dict[str, Any]:
        """More options of the call."""
        return {}

    @given(st.data())
    @draw.FEW
    def test_later_inputs_change_nothing_and_have_no_gradient(self, data: Any) -> None:
        problem, rule, now = _drawn(self, data)
        later, key_later = _later(problem, now)
        options = self.options(data)
        generator = draw.seeded(data.draw(st.integers(0, 2**20)))
        changed = problem.with_inputs(
            *(
                torch.where(mask[:, None], 5 * torch.randn(x.shape, generator=generator).to(x), x)
                for x, mask in zip(problem.inputs, (later, key_later, key_later))
            )
        )
        inputs = [x.clone().requires_grad_() for x in problem.inputs]
        before = _run(problem.with_inputs(*inputs), rule, **options)[:, :, ~later]
        after = _run(changed, rule, **options)[:, :, ~later]
        assert torch.equal(before, after)
        grads = torch.autograd.grad(before.square().sum(), inputs, allow_unused=True)
        for grad, mask in zip(grads, (later, key_later, key_later)):
            assert grad is None or not grad[:, :, mask].any()


def _drawn(contract: CausalContract, data: Any) -> tuple[draw.Problem, Rule, int]:
    problem = data.draw(draw.problems(time=True))
    rule = data.draw(contract.causal_rules(problem))
    now = int(data.draw(st.sampled_from(sorted(set(problem.structure.time.tolist())))))
    return problem, rule, now


def _later(problem: draw.Problem, now: int) -> tuple[Tensor, Tensor]:
    assert problem.structure.time is not None
    assert problem.key_structure.time is not None
    return problem.structure.time > now, problem.key_structure.time > now


def _run(problem: draw.Problem, rule: Rule, **options: Any) -> Tensor:
    options = problem.options | options
    return ndgpa.gpa(*problem.inputs, problem.structure, rule, causal=True, **options)
