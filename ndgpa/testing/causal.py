"""What every causal rule must satisfy: nothing at time t depends on a later time, bit for bit.

A later time may be anything: numbers, NaN or infinities.
"""

from typing import Any

import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import draw


class CausalContract:
    """Tests of a rule under `causal=True`: no output depends on a later time, through it either.

    Inherit it together with `RuleContract`: the hooks are the same. Every structure that is drawn
    has a time.
    """

    def rules(self, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        """Draw rules that can answer this problem."""
        raise NotImplementedError

    def problems(self, **options: Any) -> st.SearchStrategy[draw.Problem]:
        """Draw problems; override it for a rule that cannot answer all that `draw.problems` has."""
        return draw.problems(**options)

    def options(self, data: Any) -> dict[str, Any]:
        """Draw more options of the call."""
        return {}

    @draw.FEW
    @given(st.data())
    def test_later_inputs_change_nothing_and_have_no_gradient(self, data: Any) -> None:
        problem, rule, now = _drawn(self, data)
        later, key_later = _later(problem, now)
        masks = (later, key_later, key_later)
        changed = problem.with_inputs(
            *(
                torch.where(mask[:, None], data.draw(draw.anything(x)), x)
                for x, mask in zip(problem.inputs, masks)
            )
        )
        options = self.options(data)
        inputs = [x.clone().requires_grad_() for x in problem.inputs]
        before = _run(problem.with_inputs(*inputs), rule, **options)[:, :, ~later]
        after = _run(changed, rule, **options)[:, :, ~later]
        assert torch.equal(before, after)
        grads = torch.autograd.grad(before.square().sum(), inputs, allow_unused=True)
        for grad, mask in zip(grads, masks):
            assert grad is None or not grad[:, :, mask].any()


def _drawn(contract: CausalContract, data: Any) -> tuple[draw.Problem, Rule, int]:
    problem = data.draw(contract.problems(time=True))
    rule = data.draw(contract.rules(problem))
    now = int(data.draw(st.sampled_from(sorted(set(problem.structure.time.tolist())))))
    return problem, rule, now


def _later(problem: draw.Problem, now: int) -> tuple[Tensor, Tensor]:
    assert problem.structure.time is not None
    assert problem.key_structure.time is not None
    return problem.structure.time > now, problem.key_structure.time > now


def _run(problem: draw.Problem, rule: Rule, **options: Any) -> Tensor:
    options = problem.options | options
    return ndgpa.gpa(*problem.inputs, problem.structure, rule, causal=True, **options)
