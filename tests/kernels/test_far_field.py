"""The kernels of the far field against float64, and what they promise besides."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa import Bundles, Grid
from ndgpa.attention.far_field import FarKeys, FarQueries, literal
from ndgpa.attention.triton import far_backward
from ndgpa.attention.triton.far_ops import far_fused, far_triton, far_triton_backward
from tests.kernels.far_problems import far_problem, problems, rounded, solve, within_budget
from tests.kernels.memory import watched

DTYPES = (torch.float32, torch.float16)
slow = pytest.mark.slow


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_any_far_field_is_within_the_float64_budget(dtype, data):
    within_budget(data.draw(problems()), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float32, marks=slow)])
def test_several_tiles_of_blocks_and_queries_in_parts(dtype):
    """2 tiles of queries of each of 2 heads: 4 parts."""
    problem = far_problem(queries=70, blocks=150, slots=20, key_heads=1, cells=7)
    assert far_backward.far_splits(3, 4) == 4
    within_budget(problem, dtype)


def test_values_wider_than_a_tile_are_split():
    within_budget(far_problem(queries=3, blocks=5, heads=1, value_width=259), torch.float32)


def test_parts_are_never_empty():
    for programs in (1, 7, 300, 5000):
        for row_tiles in range(1, 40):
            splits = far_backward.far_splits(programs, row_tiles)
            share = -(-row_tiles // splits)
            assert (splits - 1) * share < row_tiles <= splits * share


def test_nothing_selected_is_attention_to_means_and_everything_leaves_nothing():
    asking, keys, _ = far_problem(slots=0)
    keys = replace(keys, bias=keys.bias.nan_to_num(0, 0, 0))
    problem = asking, keys, torch.empty(1, 1, 4, 0, dtype=torch.int32)
    out = solve(far_fused, problem, torch.float32, torch.float32)["out"]
    full = torch.nn.functional.scaled_dot_product_attention(
        asking.query, keys.key, keys.value, keys.bias[:, :, None], enable_gqa=True
    )
    torch.testing.assert_close(out.double(), full, rtol=1e-5, atol=1e-5)
    everything = torch.arange(9).int().expand(1, 1, 4, 9)
    answer = solve(far_fused, (asking, keys, everything), torch.float32, torch.float32)
    assert not answer["out"].any()
    assert (answer["lse"] == -torch.inf).all()
    assert not any(answer[name].any() for name in ("query", "key", "value", "bias"))


def test_two_blocks_by_hand():
    """One is selected; of the other three, one is later and one of another group."""
    row = torch.tensor([0.0, 1.0, 2.0, 3.0])
    keys = FarKeys(
        row.view(1, 1, 4, 1), 10 * row.view(1, 1, 4, 1), row.view(1, 1, 4),
        torch.tensor([0, 9, 0, 0]), torch.tensor([0, 0, 1, 0]), 2.0,
    )  # fmt: skip
    zero = torch.tensor([0])
    asking = FarQueries(torch.ones(1, 1, 1, 1), torch.float32, zero, zero, zero)
    selected = torch.tensor([[[[0, -1]]]]).int()
    out, lse = far_fused(asking, keys, selected)
    assert out.item() == 30
    assert lse.item() == pytest.approx(2 * 3 + 3)


def test_what_is_hidden_is_never_read_and_what_is_late_does_not_reach_back():
    asking, keys, selected = far_problem(timed=True, seed=1)
    clean = solve(far_fused, (asking, keys, selected), torch.float32, torch.float32)
    hidden = (keys.bias == -torch.inf)[..., None]
    dirty = replace(
        keys,
        key=keys.key.masked_fill(hidden, torch.nan),
        value=keys.value.masked_fill(hidden, torch.inf),
    )
    again = solve(far_fused, (asking, dirty, selected), torch.float32, torch.float32)
    for name, x in clean.items():
        assert torch.equal(again[name], x), name
    late = (keys.time == 3)[:, None]
    dirty = replace(keys, key=keys.key.masked_fill(late, torch.nan))
    out = far_fused(replace(asking, query=asking.query.float(), dtype=torch.float32),
                    replace(dirty, key=dirty.key.float(), value=dirty.value.float(),
                            bias=dirty.bias.float()), selected)[0]  # fmt: skip
    early = asking.time < 3
    assert torch.equal(out[:, :, early], clean["out"][:, :, early])
    assert out[:, :, ~early].isnan().any()


def test_repeats_are_identical_bit_for_bit():
    problem = far_problem(queries=40, blocks=40, key_heads=2)
    first, second = (solve(far_fused, problem, torch.float16, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_program_writes_what_another_one_reads():
    problem = far_problem(queries=70, blocks=70, heads=4, key_heads=2, timed=True)
    with watched() as watch:
        solve(far_fused, problem, torch.float16, torch.float32)
    assert watch.kernels == {"far_forward", "far_query", "far_key", "mark_selected"}
    assert not watch.faults


def operands(problem, grad=False):
    """The arguments of `far_triton` in float32."""
    asking, keys, selected = problem
    features = asking.query, keys.key, keys.value, keys.bias.nan_to_num(0, 0, 0)
    features = [x.float().requires_grad_(grad) for x in features]
    tables = selected, asking.cell, asking.time, keys.time, asking.group, keys.group
    return *features, *tables, keys.scale


def test_operators_keep_the_rules_of_the_library():
    problem = far_problem(queries=4, blocks=5, timed=True, width=4, value_width=3)
    torch.library.opcheck(far_triton, operands(problem, grad=True))
    args = operands(problem)
    out, lse, norm = far_triton(*args)
    flows = torch.randn_like(out), torch.randn_like(lse).masked_fill(~lse.isfinite(), 0)
    torch.library.opcheck(far_triton_backward, (*flows, out, norm, *args))


def test_the_second_derivative_is_that_of_the_definition():
    problem = far_problem(queries=4, blocks=6, slots=1, grouped=True)
    problem = rounded(problem, torch.float32)

    def twice(attend, dtype):
        asking, keys, selected = problem
        leaves = [x.to(dtype).requires_grad_() for x in (asking.query, keys.key, keys.value)]
        keys = replace(keys, key=leaves[1], value=leaves[2], bias=keys.bias.to(dtype))
        asking = replace(asking, query=leaves[0], dtype=dtype)
        out, lse = attend(asking, keys, selected)
        loss = out.square().sum() + lse[lse.isfinite()].square().sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for ours, x in zip(twice(far_fused, torch.float32), twice(literal, torch.float64)):
        torch.testing.assert_close(ours.double(), x, rtol=1e-4, atol=1e-4)


def test_vmap_maps_over_batches():
    args = operands(far_problem(batch=2))
    mapped = [x[:, None] for x in args[:5]]
    out = torch.vmap(lambda *xs: far_triton(*xs, *args[5:])[0])(*mapped)
    assert torch.equal(out[:, 0], far_triton(*args)[0])


@pytest.mark.parametrize("far", ["site", Bundles(3)])
def test_the_public_call_runs_the_kernels(far):
    space = Grid((4, 9), (2, 3), (1, 2), time_axis=0)
    x = torch.randn(1, 2, 36, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(36)[None] % 5 > 0
    found = []
    for backend in ("triton", "torch"):
        y = x.clone().requires_grad_()
        out = ndgpa.gpa(y, y, y, space, 2, key_mask=mask, far=far, causal=True, backend=backend)
        found.append((out, *torch.autograd.grad(out.square().sum(), y)))
    for ours, other in zip(*found):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_tensors_without_values_give_shapes_and_dtypes():
    def shapes(device):
        xs = [x.to(device) if isinstance(x, torch.Tensor) else x for x in operands(far_problem())]
        return [(x.shape, x.dtype) for x in far_triton(*xs)]

    assert shapes("cpu") == shapes("meta")
