"""Full attention, against softmax written out."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch.autograd import gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

import ndgpa
from ndgpa.operators import Operator
from ndgpa.testing import OperatorContract, draw, oracle


class TestFull(OperatorContract):
    twice = False  # the fused attention of PyTorch has no second derivative

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.Full()


class TestFullEuclidean(OperatorContract):
    twice = False

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.Full(affinity="euclidean")


@given(st.data())
def test_it_is_softmax_over_all_keys(data: Any) -> None:
    problem = data.draw(draw.problems())
    operator = ndgpa.Full(problem.scale, problem.affinity)
    out = operator(
        *problem.inputs, problem.structure, problem.key_structure, key_mask=problem.key_mask
    )
    mask = None if problem.key_mask is None else problem.key_mask[:, None]
    expected = oracle.full_attention(*problem.inputs, problem.logit_scale, problem.affinity, mask)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_causal_full_attention_sees_no_later_time(data: Any) -> None:
    problem = data.draw(draw.problems(masked=False, same=True, time=True))
    time = problem.structure.time
    out = ndgpa.Full(problem.scale, problem.affinity, causal=True)(
        *problem.inputs, problem.structure
    )
    past = (time[:, None] >= time)[None]
    expected = oracle.full_attention(*problem.inputs, problem.logit_scale, problem.affinity, past)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(draw.clusters(group=True))
def test_it_stays_within_a_group(clusters: ndgpa.Clusters) -> None:
    x = torch.randn(1, 1, clusters.num_sites, 3, dtype=torch.float64)
    kept = ndgpa.gpa(x, x, x, clusters, clusters.num_blocks)
    torch.testing.assert_close(ndgpa.Full()(x, x, x, clusters), kept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 3), (3, 5)])
def test_values_of_another_width_have_gradients_of_second_order(widths: tuple[int, int]) -> None:
    query, key = (torch.randn(1, 1, 6, widths[0], dtype=torch.float64) for _ in range(2))
    value = torch.randn(1, 1, 6, widths[1], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    structure = ndgpa.Sequence(6, 2)
    with sdpa_kernel(SDPBackend.MATH):
        assert gradgradcheck(lambda *xs: ndgpa.Full()(*xs, structure), inputs)
