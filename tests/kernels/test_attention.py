"""The attention kernels against float64, and the laws that hold for every backend."""

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa import Clusters, Grid, Selection
from tests.kernels.kernel_problems import (
    attention,
    error,
    plain,
    problems,
    reference,
    triton,
    within_budget,
)

DTYPES = (torch.float32, torch.float16)
slow = pytest.mark.slow
MANY = pytest.param(70, 3, marks=slow)
SCALES = [1, pytest.param(4, marks=slow), 16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@given(data=st.data())
def test_any_problem_is_within_the_float64_budget(dtype, scale, data):
    within_budget(data.draw(problems(scale)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_errors_over_many_rows_are_within_the_budget_without_allowance(dtype, scale):
    structure = Grid((8, 18), (4, 3), (1, 3))
    problem = attention(
        structure, heads=4, key_heads=2, selection_heads=2, width=24, value_width=20,
        biased=True, keyed=True, scale=scale,
    ).rounded(dtype)  # fmt: skip
    exact = problem.solve(reference, torch.float64)
    ours, other = problem.solve(triton, dtype), problem.solve(plain, dtype)
    for name, x in exact.items():
        times = 2 if name in ("out", "lse") else 3
        assert error(ours[name], x) <= times * error(other[name], x), name


@pytest.mark.parametrize("bias", [-100.0, 100.0])
@pytest.mark.parametrize("space", [Grid((11,), 3, 2), Grid((70,), 9, 4), Grid((13,), 1, 1)])
def test_a_large_bias_is_within_the_budget(space, bias):
    """Of slots and keys, in cells that leave rows of a tile empty: exp(100) is not finite."""
    problem = attention(space, heads=1, width=8, value_width=8, biased=True, keyed=True)
    problem.slot_bias[..., 0], problem.key_bias[problem.key_bias > 0] = bias, bias
    within_budget(problem, torch.float32)


@pytest.mark.parametrize(("sites", "width"), [(1, 8), (3, 8), (27, 8), (64, 8), (100, 4), (128, 4)])
def test_blocks_of_any_size(sites, width):
    structure = Grid((2 * sites + 1,), sites, 2)
    problem = attention(structure, heads=1, width=width, value_width=width, slots=2, biased=True)
    within_budget(problem, torch.float16)


@pytest.mark.parametrize(
    ("sites", "slots"), [(3, 30), (9, 8), (12, 12), pytest.param(70, 3, marks=slow)]
)
def test_selections_of_many_tiles_of_keys(sites, slots):
    """Of blocks that leave room in a tile, and of blocks that need more than one."""
    structure = Grid((sites * slots,), sites, max(1, slots // 2))
    problem = attention(structure, heads=1, width=8, value_width=8, slots=slots, biased=True)
    within_budget(problem, torch.float32)


@pytest.mark.parametrize(
    ("width", "value_width"), [(1, 1), (64, 5), (160, 64), (96, 130), (256, 256)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_any_width(width, value_width, dtype):
    problem = attention(Grid((5, 4), 2, 2), heads=1, width=width, value_width=value_width)
    within_budget(problem, dtype)


def test_two_keys_by_hand():
    structure = Grid((2,), 1, 2)
    query = torch.tensor([[1.0], [0.0]]).view(1, 1, 2, 1)
    key = torch.tensor([[0.0], [2.0]]).view(1, 1, 2, 1)
    value = torch.tensor([[0.0], [1.0]]).view(1, 1, 2, 1)
    selection = Selection(torch.tensor([[[[0, 1]]]], dtype=torch.int32))
    out, lse = triton(query, key, value, selection, structure, structure, scale=1.0)
    e2 = torch.tensor(2.0).exp()
    assert torch.allclose(out.flatten(), torch.stack([e2 / (1 + e2), torch.tensor(0.5)]))
    assert torch.allclose(lse.flatten(), torch.stack([(1 + e2).log(), torch.tensor(2.0).log()]))


@pytest.mark.parametrize(
    ("dtype", "causal"),
    [
        (torch.float32, False),
        (torch.float16, True),
        pytest.param(torch.float32, True, marks=slow),
        pytest.param(torch.float16, False, marks=slow),
    ],
)
def test_padding_and_masked_keys_are_never_read(dtype, causal):
    problem = attention(
        Grid((5, 7), (2, 3), 2, time_axis=0), heads=2, key_heads=2, width=20, value_width=12,
        keyed=True, causal=causal,
    ).rounded(dtype)  # fmt: skip
    hidden = problem.key_bias == -torch.inf
    clean = problem.solve(triton, dtype)
    problem.key[hidden] = torch.nan
    problem.value[hidden] = torch.nan
    dirty = problem.solve(triton, dtype)
    for name, x in clean.items():
        assert torch.equal(dirty[name], x), name
    assert not clean["key"][hidden].any()


def test_blocks_that_nobody_reads_are_never_read_and_get_gradient_zero():
    problem = attention(Grid((12,), 3, 2), heads=1, slots=2)
    problem.blocks.copy_(torch.tensor([[0, -1], [1, 0]]))
    problem.key[:, :, 6:], problem.value[:, :, 6:] = torch.nan, torch.nan
    answer = problem.solve(triton, torch.float32)
    assert answer["out"].isfinite().all()
    for name in ("key", "value"):
        assert torch.equal(answer[name][:, :, 6:], torch.zeros_like(answer[name][:, :, 6:]))


def test_a_query_that_sees_nothing_gives_zero_and_sends_no_gradient():
    problem = attention(Grid((12,), 3, 2), heads=2, slots=2, biased=True, keyed=True)
    problem.blocks[:, :, 1] = -1
    answer = problem.solve(triton, torch.float32)
    assert not answer["out"][:, :, 6:].any()
    assert (answer["lse"][:, :, 6:] == -torch.inf).all()
    assert not answer["query"][:, :, 6:].any()
    assert all(answer[name].isfinite().all() for name in answer if name != "lse")


@pytest.mark.parametrize("cell_of_block", [[0, 1], [0, 0]], ids=["members", "one"])
def test_a_blind_query_has_a_log_sum_exp_of_minus_infinity_and_an_output_of_zero(cell_of_block):
    """A query at time 0 where all keys are of time 1 or masked, beside one that sees key 2."""
    space = Clusters(torch.tensor([0, 1, 1]), torch.tensor(cell_of_block), torch.tensor([0, 1, 1]))
    x = torch.ones(1, 1, 3, 1)
    blocks = torch.tensor([0, 1], dtype=torch.int32).expand(1, 1, space.num_cells, 2)
    key_bias = torch.tensor([[[-torch.inf, -torch.inf, 3.0]]])
    out, lse = triton(
        x, x, x, Selection(blocks), space, space, scale=2.0, key_bias=key_bias, causal=True
    )
    assert out.flatten().tolist() == [0, 1, 1]
    assert lse.flatten().tolist() == [-torch.inf, 5, 5]


def test_rows_that_do_not_exist_send_no_gradient_to_the_bias_of_a_slot():
    """They stand for site 0, which here is late and sees keys that are not finite."""
    time = torch.tensor([9, 9, 0, 1, 2])
    space = Clusters(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1]), time)
    problem = attention(space, heads=1, biased=True, causal=True, slots=2)
    problem.blocks.copy_(torch.tensor([0, 1]))
    clean = problem.solve(triton, torch.float32)["slot bias"]
    problem.key[:, :, :2] = torch.nan
    dirty = problem.solve(triton, torch.float32)["slot bias"]
    assert torch.equal(dirty[:, :, 1], clean[:, :, 1])


def test_the_future_does_not_exist():
    problem = attention(Grid((4, 6), (2, 3), (1, 2), time_axis=0), causal=True, slots=4)
    problem.blocks.copy_(torch.arange(4))
    before = problem.solve(triton, torch.float32)["out"]
    problem.key[:, :, 12:] += 1
    problem.value[:, :, 12:] += 1
    after = problem.solve(triton, torch.float32)["out"]
    assert torch.equal(before[:, :, :12], after[:, :, :12])
    assert not torch.equal(before[:, :, 12:], after[:, :, 12:])


@slow  # the contract draws such problems
def test_every_block_kept_is_full_attention():
    structure, key_structure = (
        Grid((5, 7), (2, 3), 2),
        Clusters(torch.tensor([0, 1, 1, 2, 2, 2, 0, 3, 3, 1]), torch.tensor([0, 1, 0, 1])),
    )
    problem = attention(structure, key_structure, heads=4, key_heads=2, slots=4)
    problem.blocks.copy_(torch.arange(4))
    full = torch.nn.functional.scaled_dot_product_attention(
        problem.query, problem.key, problem.value, enable_gqa=True
    )
    assert torch.allclose(problem.solve(triton, torch.float32)["out"].double(), full, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float32, marks=slow)])
def test_repeats_are_identical_bit_for_bit(dtype):
    problem = attention(Grid((4, 9), (2, 3), 2), heads=4, key_heads=2, biased=True, keyed=True)
    first, second = problem.solve(triton, dtype), problem.solve(triton, dtype)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_order_of_the_inputs_does_not_matter():
    problem = attention(Grid((4, 6), (2, 3), 2), batch=2, width=10, value_width=6)
    clean = problem.solve(triton, torch.float32)
    for name in ("query", "key", "value", "grad_out"):
        x = getattr(problem, name)
        x.set_(x.transpose(1, 2).contiguous().transpose(1, 2))
    by_site = problem.solve(triton, torch.float32)
    assert by_site["out"].stride(1) < by_site["out"].stride(2)
    for name in ("query", "key", "value"):
        x = getattr(problem, name)
        x.set_(x.mT.contiguous().mT)
    by_feature = problem.solve(triton, torch.float32)
    for name, x in clean.items():
        assert torch.equal(by_site[name], x), name
        assert torch.equal(by_feature[name], x), name


def test_the_public_call_runs_the_kernels_for_both_affinities():
    structure = Grid((4, 6), 2)
    x = torch.randn(1, 2, 24, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(24)[None] % 5 > 0
    for affinity in ("dot", "euclidean"):
        grads = []
        for backend in ("triton", "torch"):
            y = x.clone().requires_grad_()
            out = ndgpa.gpa(
                y, y, y, structure, 3, affinity=affinity, key_mask=mask, backend=backend
            )
            grads.append((out, *torch.autograd.grad(out.square().sum(), y)))
        for ours, other in zip(*grads):
            assert torch.allclose(ours, other, atol=1e-5)
