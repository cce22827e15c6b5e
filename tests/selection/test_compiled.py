"""Rules inside one compiled graph, causal ones too."""

import pytest
import torch

import ndgpa
from ndgpa.selection import Rule


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("rule", "causal"),
    [
        (ndgpa.TopK(2) | ndgpa.Window(1), True),
        (ndgpa.TopRatio(0.4), True),
        (ndgpa.MultiLevel((3, 3)), True),
        (ndgpa.StraightThrough(ndgpa.TopK(2)), False),
    ],
    ids=["union", "ratio", "levels", "straight-through"],
)
def test_a_rule_compiles_without_a_graph_break(rule: Rule, causal: bool) -> None:
    space, x = ndgpa.Sequence(40, 4, 2), torch.randn(1, 2, 40, 8)

    def call(query: torch.Tensor) -> torch.Tensor:
        return ndgpa.gpa(query, x, x, space, rule, causal=causal)

    expected = call(x)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.compiled
def test_a_coarse_branch_compiles() -> None:
    space, x = ndgpa.Sequence(40, 4, 2), torch.randn(1, 2, 40, 8)
    operator = ndgpa.GPA(2, coarse="add")
    torch._dynamo.reset()
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x, space), operator(x, x, x, space))
