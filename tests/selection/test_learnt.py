"""Learnt selection: the forward is what it says, the gradient reaches what was not selected."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import minimize

import ndgpa
from ndgpa.selection import Rule
from ndgpa.selection.perturbed_top_k import chosen
from ndgpa.selection.soft import log_relevance
from ndgpa.selection.soft_top_k import project
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import relevance, rows, voters_of


class TestStraightThrough(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            lambda k, share: ndgpa.StraightThrough(ndgpa.TopK(k, share=share)),
            st.integers(1, 4),
            st.sampled_from(["head", "group", "all"]),
        )


class TestSoftTopK(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.SoftTopK,
            st.integers(1, 3),
            st.sampled_from([0.1, 1.0]),
            st.sampled_from([None, 3]),
            st.sampled_from(["head", "group", "all"]),
        )


class TestPerturbedTopK(CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return st.builds(
            ndgpa.PerturbedTopK, st.integers(1, 3), samples=st.just(3), seed=st.just(7)
        )


@pytest.mark.parametrize(
    "rule",
    [ndgpa.StraightThrough(ndgpa.TopK(2)), ndgpa.SoftTopK(2), ndgpa.PerturbedTopK(2)],
    ids=["straight-through", "soft", "perturbed"],
)
def test_a_batch_of_none_has_a_gradient_of_none(rule: Rule) -> None:
    x = torch.zeros(0, 2, 16, 3, requires_grad=True)
    out = ndgpa.gpa(x, x, x, ndgpa.Sequence(16, 4), rule)
    assert out.shape == torch.autograd.grad(out.sum(), x)[0].shape == x.shape


@given(st.data())
def test_straight_through_is_the_hard_rule_to_the_bit(data: Any) -> None:
    problem = data.draw(draw.problems())
    rule = data.draw(TestStraightThrough.rules(problem))
    options = problem.options
    soft, hard = (
        ndgpa.gpa(*problem.inputs, problem.structure, r, **options) for r in (rule, rule.rule)
    )
    assert torch.equal(soft, hard)


@given(st.data())
def test_log_relevance_is_the_logarithm_of_the_share(data: Any) -> None:
    problem = data.draw(draw.problems(max_batch=1))
    asked = ndgpa.Problem(
        problem.query,
        problem.key,
        problem.structure,
        problem.key_structure,
        problem.logit_scale,
        problem.affinity,
        key_mask=problem.key_mask,
    )
    mine = log_relevance(asked)[0].exp()
    seen = [True] * problem.key.shape[2]
    if problem.key_mask is not None:
        seen = problem.key_mask[0].tolist()
    mask = None if problem.key_mask is None else problem.key_mask[0]
    tables = (problem.structure.blocks, problem.structure.cells, problem.key_structure.blocks)
    for h in range(problem.query.shape[1]):
        expected = relevance(
            problem.query[0, h].numpy(),
            problem.key[0, h * problem.key.shape[1] // problem.query.shape[1]].numpy(),
            *(rows(table) for table in tables),
            seen,
            problem.logit_scale,
            problem.affinity,
            voters=voters_of(problem.structure, problem.key_structure, mask),
        )
        expected = np.nan_to_num(expected)
        total = expected.sum(axis=1, keepdims=True)
        expected = expected / np.where(total == 0, 1, total)
        np.testing.assert_allclose(mine[h].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        ndgpa.StraightThrough(ndgpa.TopK(2)),
        ndgpa.PerturbedTopK(2, at_most=4, seed=3),
        ndgpa.SoftTopK(2, temperature=2.0),
    ],
    ids=["straight-through", "perturbed", "projection"],
)
def test_the_gradient_reaches_what_was_not_selected(rule: Rule) -> None:
    """The selection alone carries it: the attention reads other queries and keys."""
    generator = draw.seeded(0)
    q, k, query, key, value = (
        torch.randn(1, 1, 64, 4, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    image = ndgpa.Image((8, 8), 2)
    q.requires_grad_(), k.requires_grad_()
    selection = ndgpa.select(q, k, image, rule)
    out = ndgpa.attend(query, key, value, selection, image)
    by_query, by_key = torch.autograd.grad(out.square().sum(), (q, k))
    assert (by_query.abs().sum(-1) > 0).all()
    assert (by_key.abs().sum(-1) > 0).all()
    hard = ndgpa.select(q, k, image, 2)
    assert not ndgpa.attend(query, key, value, hard, image).requires_grad


def test_the_straight_through_gradient_is_that_of_soft_weights() -> None:
    """By finite differences of the attention whose slots have the bias log r - log r0."""
    generator = draw.seeded(1)
    q, k, query, key, value = (
        torch.randn(1, 1, 32, 3, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    space = ndgpa.Sequence(32, 4)
    kept = ndgpa.select(q, k, space, 2).blocks

    def slots(keys: torch.Tensor) -> torch.Tensor:
        problem = ndgpa.Problem(q, keys, space, space, 3**-0.5)
        return log_relevance(problem).gather(-1, kept.long())

    def soft(keys: torch.Tensor) -> torch.Tensor:
        selection = ndgpa.Selection(kept, slots(keys) - slots(k))
        return ndgpa.attend(query, key, value, selection, space).square().sum()

    k.requires_grad_()
    selection = ndgpa.select(q, k, space, ndgpa.StraightThrough(ndgpa.TopK(2)))
    out = ndgpa.attend(query, key, value, selection, space).square().sum()
    (grad,) = torch.autograd.grad(out, k)
    with torch.no_grad():
        for site, feature in ((0, 0), (9, 1), (31, 2)):
            step = torch.zeros_like(k)
            step[0, 0, site, feature] = 1e-5
            slope = (soft(k + step) - soft(k - step)) / 2e-5
            assert grad[0, 0, site, feature].item() == pytest.approx(slope.item(), rel=1e-6)


@given(st.integers(0, 2**20), st.integers(1, 6), st.integers(2, 8))
def test_the_projection_is_the_nearest_point(seed: int, k: int, count: int) -> None:
    """Against a general solver of the quadratic programme."""
    x = torch.randn(count, generator=draw.seeded(seed), dtype=torch.float64)
    weight = project(x, k)
    if count <= k:
        assert weight.tolist() == [1.0] * count
        return
    solved = minimize(
        lambda w: ((w - x.numpy()) ** 2).sum(),
        np.full(count, k / count),
        jac=lambda w: 2 * (w - x.numpy()),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - k},
        tol=1e-14,
    )
    np.testing.assert_allclose(weight.numpy(), solved.x, atol=1e-6)
    assert weight.sum().item() == pytest.approx(k)


@given(st.integers(0, 2**20), st.integers(1, 5))
def test_the_projection_says_to_the_last_bit_which_weights_are_between(seed: int, k: int) -> None:
    """A pair next to the border, by hand: one is a hair above the other, so both share a unit."""
    generator = draw.seeded(seed)
    above = 10 + torch.rand(k, generator=generator, dtype=torch.float64)
    below = -10 - torch.rand(3, generator=generator, dtype=torch.float64)
    for gap in (2.0**-20, 2.0**-40, 2.0**-50):
        pair = torch.tensor([0.0, -1.0 + gap], dtype=torch.float64)
        weight = project(torch.cat([above, pair, below]), k + 1)
        assert weight[:k].tolist() == [1.0] * k
        assert weight[k:].tolist() == [1 - gap / 2, gap / 2, 0.0, 0.0, 0.0]


@given(st.integers(0, 2**20), st.integers(1, 5))
@draw.FEW
def test_the_projection_has_the_right_gradient(seed: int, k: int) -> None:
    x = torch.randn(3, 6, generator=draw.seeded(seed), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: project(y, k), x)


def test_a_cold_projection_is_the_hard_choice() -> None:
    x = torch.tensor([0.1, -0.3, 0.5, -torch.inf, 0.2])
    assert project(x / 1e-3, 2).tolist() == [0, 0, 1, 0, 1]
    assert project(torch.full((4,), -torch.inf), 2).tolist() == [0, 0, 0, 0]
    assert project(torch.tensor([1.0, -torch.inf]), 2).tolist() == [1, 0]
    assert project(torch.zeros(4), 2).tolist() == [0.5] * 4


def test_the_perturbed_gradient_is_that_of_the_mean_choice() -> None:
    """Many samples against finite differences of many samples of the same noise."""
    scores = torch.tensor([0.3, 0.0, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    options = (2, 0.5, 10, torch.tensor(11))

    def mean(x: torch.Tensor) -> torch.Tensor:
        return chosen(x.expand(4000, 4), *options).mean(dim=0)

    gain = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad(mean(scores) @ gain, scores)
    with torch.no_grad():
        for i in range(4):
            step = 0.1 * torch.eye(4, dtype=torch.float64)[i]
            up, down = (mean(scores + s) @ gain for s in (step, -step))
            assert grad[i].item() == pytest.approx(((up - down) / 0.2).item(), abs=0.08)


def test_perturbed_choices_are_mapped() -> None:
    """Each sample has noise of its own, so what is compared needs little of it."""
    image = ndgpa.Image((8, 8), 2)
    x = torch.randn(3, 1, 1, 64, 4, generator=draw.seeded(0))
    calm = ndgpa.PerturbedTopK(2, sigma=1e-9, at_most=2, seed=3)

    def call(query: torch.Tensor) -> torch.Tensor:
        return ndgpa.gpa(query, query, query, image, calm)

    torch.testing.assert_close(torch.vmap(call)(x), torch.stack([call(y) for y in x]))


def test_noise_is_controlled() -> None:
    x = torch.randn(1, 1, 64, 4, generator=draw.seeded(0))
    image = ndgpa.Image((8, 8), 2)

    def bias(rule: Rule) -> torch.Tensor:
        return ndgpa.select(x, x, image, rule).bias

    fixed = ndgpa.PerturbedTopK(2, seed=5)
    assert torch.equal(bias(fixed), bias(fixed))
    free = ndgpa.PerturbedTopK(2)
    torch.manual_seed(0)
    first, second = bias(free), bias(free)
    torch.manual_seed(0)
    assert torch.equal(first, bias(free))
    assert not torch.equal(first, second)
    calm = ndgpa.select(x, x, image, ndgpa.PerturbedTopK(2, sigma=1e-9, at_most=2))
    assert torch.equal(calm.blocks, ndgpa.select(x, x, image, 2).blocks)
    assert not calm.bias.any()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ndgpa.PerturbedTopK(2, sigma=0.0), "sigma must be positive"),
        (lambda: ndgpa.SoftTopK(2, temperature=-1.0), "temperature must be positive"),
        (lambda: ndgpa.SoftTopK(0), "k must be at least 1"),
        (lambda: ndgpa.PerturbedTopK(1, samples=1), "samples - 1 must be at least 1"),
    ],
)
def test_bad_options_are_named(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
