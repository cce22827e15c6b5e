"""The kernels on a real GPU, in all dtypes."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import ndgpa
from ndgpa import Clusters, Grid, Image, Selection, Video
from ndgpa.attention import pick
from ndgpa.attention.triton.ops import attend_triton, fused
from ndgpa.selection.select_blocks import select_top_k
from ndgpa.structures.means import block_sums, means_in_two, whole
from tests.kernels.far_problems import (
    far_problem,
    moved,
    problems as far_problems,
    within_budget as far_within_budget,
)
from tests.kernels.kernel_problems import (
    attention,
    error,
    plain,
    problems,
    reference,
    triton,
    within_budget,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPACES = {
    "pivot": lambda: Image((256, 256), 4, 2),
    "pixel cells": lambda: Image((128, 64), 8, 1),
    "video": lambda: Video((8, 32, 32), 4, 1),
    "tiny blocks": lambda: Grid((61, 67), 2, 1),
    "clusters": lambda: Clusters(torch.randperm(5000) % 700, torch.arange(700) % 90),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 4, 16])
@given(data=st.data())
def test_any_problem_is_within_the_float64_budget(dtype, scale, data):
    within_budget(data.draw(problems(scale)).to("cuda"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 4, 16])
@pytest.mark.parametrize("width", [64, 128, 160])
def test_errors_over_many_rows_are_within_the_budget_without_allowance(dtype, scale, width):
    structure = Grid((45, 70), 4, (1, 3))
    problem = attention(
        structure, heads=4, key_heads=2, selection_heads=2, width=width, value_width=64, slots=7,
        biased=True, keyed=True, scale=scale,
    ).to("cuda").rounded(dtype)  # fmt: skip
    exact = problem.solve(reference, torch.float64)
    ours, other = problem.solve(triton, dtype), problem.solve(plain, dtype)
    for name, x in exact.items():
        times = 2 if name in ("out", "lse") else 3
        assert error(ours[name], x) <= times * error(other[name], x), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 64, 128, 256])
@pytest.mark.parametrize("sites", [1, 3, 16, 27, 64, 100, 128])
def test_blocks_and_heads_of_any_size(sites, width, dtype):
    structure = Grid((9 * sites + 1,), sites, 2)
    problem = attention(structure, width=width, value_width=max(1, width // 2), biased=True)
    within_budget(problem.to("cuda"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_any_far_field_is_within_the_float64_budget(dtype, data):
    far_within_budget(moved(data.draw(far_problems()), "cuda"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 128, 160])
def test_a_large_far_field_is_within_the_float64_budget(width, dtype):
    problem = far_problem(
        queries=500, blocks=1000, cells=30, slots=12, heads=4, key_heads=2, selection_heads=2,
        width=width, value_width=width, timed=True,
    )  # fmt: skip
    far_within_budget(moved(problem, "cuda"), dtype)


@pytest.mark.parametrize("far", [None, "site", "block"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", SPACES)
def test_repeats_are_identical_bit_for_bit(space, dtype, far):
    first, second = (_run(SPACES[space](), dtype, far=far) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("far", [None, "site", "block"])
@pytest.mark.parametrize("space", SPACES)
def test_the_torch_backend_agrees(space, far):
    ours = _run(SPACES[space](), torch.float32, far=far)
    other = _run(SPACES[space](), torch.float32, backend="torch", far=far)
    for a, b in zip(ours, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def _inputs(space, dtype, heads=2, width=64):
    g = torch.Generator().manual_seed(0)
    shape = (1, heads, space.num_sites, width)
    return [torch.randn(shape, generator=g).to("cuda", dtype).requires_grad_() for _ in range(3)]


def _run(space, dtype, backend=None, far=None):
    inputs = _inputs(space, dtype)
    selection = ndgpa.select(*inputs[:2], space, 5)
    out = ndgpa.attend(*inputs, selection, space, far=far, backend=backend)
    return [selection.blocks, out, *torch.autograd.grad(out.float().square().sum(), inputs)]


def test_nobody_who_asks_for_none_gets_another_backend():
    for dtype in DTYPES:
        x = torch.empty(1, 1, 4, 4, device="cuda", dtype=dtype)
        assert pick(None, x, x) is fused
    x = x.double()
    assert pick(None, x, x) is not fused


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("share", ["head", "group", "all"])
@pytest.mark.parametrize("relevance", ["mass", "logit"])
@pytest.mark.parametrize("space", SPACES)
def test_the_blocks_are_those_of_the_torch_formula(space, relevance, share, causal):
    """Products differ in the last bits, so a tie within rounding may go either way."""
    space = SPACES[space]()
    if causal and space.time is None:
        pytest.skip("has no time")
    rule = ndgpa.TopK(5, relevance=relevance, share=share)
    query, key, _ = _inputs(space, torch.float32, heads=4, width=40)
    ours = ndgpa.select(query, key, space, rule, causal=causal).blocks
    exact = [x.cpu().double() for x in (query, key)]
    exact = ndgpa.select(*exact, space, rule, causal=causal).blocks
    assert (ours.cpu() == exact).float().mean() > 0.995


@pytest.mark.parametrize("estimate", ["mean", "site"])
@pytest.mark.parametrize("parts", [1, 3, 4])
@pytest.mark.parametrize("space", SPACES)
def test_a_second_look_keeps_what_the_torch_formula_does(space, parts, estimate):
    space = SPACES[space]()
    rule = ndgpa.Refine(ndgpa.TopK(12, estimate=estimate), 5, parts, estimate)
    query, key, _ = _inputs(space, torch.float32, heads=4, width=40)
    ours = ndgpa.select(query, key, space, rule).blocks
    exact = ndgpa.select(query.cpu().double(), key.cpu().double(), space, rule).blocks
    assert (ours.cpu() == exact).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("space", SPACES)
def test_means_in_two_parts_select_what_float64_does(space, dtype):
    space = SPACES[space]()
    query, key, _ = _inputs(space, dtype, heads=2, width=64)
    ours = ndgpa.select(query, key, space, 5).blocks
    exact = ndgpa.select(query.cpu().double(), key.cpu().double(), space, 5).blocks
    assert (ours.cpu() == exact).float().mean() > 0.995
    parts = means_in_two(query, None, space.to("cuda").blocks, space.is_even)
    means = space.downsample(query.cpu().double())
    assert ((whole(parts).cpu().double() - means).abs() <= 2**-16 * means.abs() + 1e-6).all()


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("forced", [False, True])
def test_a_cell_of_one_query_selects_what_the_torch_formula_does(scale, forced):
    """Weights of large inputs are 0, and equals."""
    space = Image((128, 64), 8, 1)
    query, key, _ = _inputs(space, torch.float32, heads=4, width=40)
    rule = ndgpa.TopK(9, force=ndgpa.Own() if forced else None)
    ours = ndgpa.select(scale * query, scale * key, space, rule).blocks
    exact = ndgpa.select((scale * query).cpu(), (scale * key).cpu(), space, rule).blocks
    assert (ours.cpu() == exact).float().mean() > 0.98


def test_of_equals_the_lowest_ids_are_taken():
    space = Image((32, 32), 4, 2)
    x = torch.zeros(1, 2, 1024, 16, device="cuda")
    blocks = ndgpa.select(x, x, space, 5).blocks
    assert torch.equal(blocks, torch.arange(5, device="cuda").int().expand_as(blocks))


@pytest.mark.parametrize("space", ["pivot", "clusters", "tiny blocks"])
def test_a_cuda_graph_captures_selection_forward_and_backward(space):
    space = SPACES[space]()
    inputs = _inputs(space, torch.bfloat16)

    def step():
        out = ndgpa.gpa(*inputs, space, 5)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in inputs:
            x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [x.clone() for x in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


def test_the_host_never_waits():
    space = SPACES["pivot"]()
    inputs = _inputs(space, torch.bfloat16)

    def step():
        out = ndgpa.gpa(*inputs, space, 5)
        torch.autograd.grad(out, inputs, out)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_the_rules_of_the_library(dtype):
    space = Grid((10, 6), 2, 2).to("cuda")
    query, key, value = _inputs(space, dtype, width=16)
    blocks = ndgpa.select(query, key, space, 3).blocks
    given = (query, key, value, None, None, blocks, space.cell_sites, space.blocks, None, None, 0.3)
    torch.library.opcheck(attend_triton, given)
    torch.library.opcheck(block_sums, (query, None, space.blocks, space.block_of_site))
    coarse = torch.randn(1, 2, space.num_cells, space.blocks_per_cell, 16, device="cuda")
    weight = torch.ones(len(coarse), *coarse.shape[2:4], device="cuda")
    keys = torch.randn(1, 2, space.num_blocks, 16, device="cuda")
    nothing = [None] * 2
    torch.library.opcheck(
        select_top_k,
        (coarse, keys, *nothing, weight, *nothing, None, 3, "mass", "head", 0.3),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_graph_has_no_break(dtype):
    space = Image((32, 32), 4, 2)
    inputs = _inputs(space, dtype)

    def run(query, key, value):
        return ndgpa.gpa(query, key, value, space, 5)

    compiled = torch.compile(run, fullgraph=True)
    ours, eager = compiled(*inputs), run(*inputs)
    assert torch.allclose(ours, eager, atol=1e-2)
    grads = [torch.autograd.grad(out.float().sum(), inputs) for out in (ours, eager)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=2e-2)


def test_autocast_casts_the_inputs():
    space = Image((32, 32), 4, 2)
    inputs = _inputs(space, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = ndgpa.gpa(*inputs, space, 5)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), inputs))


def test_float32_products_follow_the_setting_of_torch(monkeypatch):
    space = SPACES["pivot"]()
    exact = _run(space, torch.float32)[1]
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    fast = _run(space, torch.float32)[1]
    assert not torch.equal(exact, fast)
    assert torch.allclose(exact, fast, atol=1e-2)


@settings(max_examples=5)
@given(data=st.data())
def test_masked_keys_are_never_read(data):
    problem = data.draw(problems()).to("cuda").rounded(torch.bfloat16)
    if problem.key_bias is None:
        return
    hidden = problem.key_bias == -torch.inf
    clean = problem.solve(triton, torch.bfloat16)
    problem.key[hidden], problem.value[hidden] = torch.nan, torch.nan
    dirty = problem.solve(triton, torch.bfloat16)
    assert all(torch.equal(dirty[name], x) for name, x in clean.items())


@pytest.mark.large_memory
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < 60 << 30, reason="takes 50 GB"
)
def test_offsets_beyond_31_bits_do_not_wrap():
    space = Image((256, 256), 4, 2)
    x = torch.randn(33, 8, space.num_sites, 128, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    blocks = ndgpa.select(x[-1:], x[-1:], space, 2).blocks
    alone = x[-1:].clone().requires_grad_()
    out = ndgpa.attend(alone, alone, alone, Selection(blocks), space)
    (grad,) = torch.autograd.grad(out, alone, alone)
    x.requires_grad_()
    every = Selection(blocks.expand(33, -1, -1, -1))
    whole = ndgpa.attend(x, x, x, every, space)
    assert torch.equal(whole[-1:], out)
    (whole_grad,) = torch.autograd.grad(whole, x, x)
    assert torch.equal(whole_grad[-1:], grad)


@pytest.mark.large_memory
def test_memory_of_forward_and_backward():
    """At most 1.5 times the inputs, outputs and gradients, at the paper's pivot."""
    space = SPACES["pivot"]()
    inputs = _inputs(space, torch.bfloat16, heads=64)
    cotangent = torch.randn_like(inputs[0])

    def step():
        torch.autograd.grad(ndgpa.gpa(*inputs, space, 12), inputs, cotangent)

    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    above = torch.cuda.max_memory_allocated() - before
    assert above + 4 * cotangent.nbytes <= 1.5 * 8 * cotangent.nbytes
