"""The kernels as operators: autograd of autograd, compilation, vmap, autocast."""

from dataclasses import replace

import pytest
import torch

import ndgpa
from ndgpa import Grid, Selection
from ndgpa.attention.triton.ops import attend_triton, attend_triton_backward
from ndgpa.structures.means import block_sums, means_in_two
from tests.kernels.kernel_problems import attention, reference, triton


def given(problem, grad=False):
    """The arguments of `attend_triton` in float32."""
    features = [x.float() for x in (problem.query, problem.key, problem.value)]
    biases = [None if x is None else x.float() for x in (problem.slot_bias, problem.key_bias)]
    for x in (*features, *biases):
        if grad and x is not None:
            x.requires_grad_()
    structure, key_structure = problem.structure, problem.key_structure
    return (
        *features,
        *biases,
        problem.blocks,
        structure.cell_sites,
        key_structure.blocks,
        structure.time if problem.causal else None,
        key_structure.time if problem.causal else None,
        problem.scale,
    )


SMALL = {"heads": 2, "key_heads": 1, "width": 4, "value_width": 3, "slots": 2}
FORMS = [{}, {"biased": True, "keyed": True, "causal": True, "selection_heads": 2}]


@pytest.mark.parametrize("form", [pytest.param(FORMS[0], marks=pytest.mark.slow), FORMS[1]])
def test_operators_keep_the_rules_of_the_library(form):
    problem = attention(Grid((5, 2), 2, (2, 1), time_axis=0), **SMALL, **form)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(attend_triton, given(problem, grad=True), test_utils=checks)
    torch.library.opcheck(attend_triton, given(problem, grad=True))
    args = given(problem)
    out, _, norm = attend_triton(*args)
    grads = (problem.grad_out.float(), problem.grad_lse.float(), out, norm)
    torch.library.opcheck(attend_triton_backward, (*grads, *args))
    x = torch.randn(1, 2, 10, 4, requires_grad=True)
    structure = problem.structure
    torch.library.opcheck(block_sums, (x, None, structure.blocks, structure.block_of_site))
    torch.library.opcheck(means_in_two, (x.detach().half(), None, structure.blocks, False))


@pytest.mark.parametrize("form", FORMS)
def test_the_second_derivative_is_that_of_the_reference(form):
    problem = attention(Grid((5, 2), 2, (2, 1), time_axis=0), **SMALL, **form)
    problem = problem.rounded(torch.float32)

    def twice(backend, dtype):
        given = (problem.query, problem.key, problem.value, problem.slot_bias, problem.key_bias)
        xs = [None if x is None else x.to(dtype).requires_grad_() for x in given]
        out, lse = backend(
            *xs[:3],
            Selection(problem.blocks, xs[3]),
            problem.structure,
            problem.key_structure,
            scale=problem.scale,
            key_bias=xs[4],
            causal=problem.causal,
        )
        inputs = [x for x in xs if x is not None]
        cotangents = [problem.grad_out.to(dtype), problem.grad_lse.to(dtype)]
        cotangents = [c.requires_grad_() for c in cotangents]
        first = torch.autograd.grad((out, lse), inputs, cotangents, create_graph=True)
        penalty = sum(g[g.isfinite()].square().sum() for g in first)
        return torch.autograd.grad(penalty, [*inputs, *cotangents])

    exact = twice(reference, torch.float64)
    for ours, x in zip(twice(triton, torch.float32), exact):
        assert torch.allclose(ours.double(), x, rtol=1e-4, atol=1e-4)


def test_vmap_maps_over_problems_of_one_structure():
    problem = attention(Grid((10,), 2, 2), **SMALL, batch=3, biased=True)
    many = given(problem)

    def alone(query, key, value, bias, blocks):
        return attend_triton(query, key, value, bias, None, blocks, *many[6:])[0]

    mapped = [x[:, None] for x in (*many[:4], many[5])]
    out = torch.vmap(alone)(*mapped)
    assert torch.equal(out[:, 0], attend_triton(*many)[0])

    def gradient(query, key, value, bias, blocks, *of_out):
        given = query, key, value, bias, None, blocks
        return attend_triton_backward(*of_out, *given, *many[6:])[:4]

    out, _, norm = attend_triton(*many)
    given_back = (problem.grad_out.float(), problem.grad_lse.float(), out, norm)
    whole = gradient(*many[:4], many[5], *given_back)
    ours = torch.vmap(gradient)(*mapped, *(x[:, None] for x in given_back))
    for x, y in zip(ours, whole, strict=True):
        assert torch.equal(x[:, 0], y)


def test_masked_keys_are_left_as_they_are_to_the_second_derivative():
    """The public call makes no copy of key and value to hide them; NaN in them is never read."""
    problem = attention(Grid((5, 2), 2, (2, 1), time_axis=0), **SMALL)
    key_mask = torch.arange(10)[None] % 3 > 0

    def solve(junk):
        xs = [x.float() for x in (problem.query, problem.key, problem.value)]
        for x in xs[1:]:
            x[:, :, ~key_mask[0]] = junk
        xs = [x.requires_grad_() for x in xs]
        selection = Selection(problem.blocks)
        out = ndgpa.attend(*xs, selection, problem.structure, key_mask=key_mask, backend="triton")
        first = torch.autograd.grad(out.square().sum(), xs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), xs)
        return out, *first, *second

    for clean, dirty in zip(solve(0.0), solve(torch.nan)):
        assert torch.equal(clean, dirty)


def test_autocast_casts_the_inputs_of_the_public_call():
    structure = Grid((10,), 2, 2)
    problem = attention(structure, **SMALL)
    selection = Selection(problem.blocks)
    xs = [x.float().requires_grad_() for x in (problem.query, problem.key, problem.value)]
    halves = [x.detach().half().requires_grad_() for x in xs]
    with torch.autocast("cpu", torch.float16):
        out = ndgpa.attend(*xs, selection, structure, backend="triton")
        grads = torch.autograd.grad(out.float().sum(), xs)
    wanted = ndgpa.attend(*halves, selection, structure, backend="triton")
    assert out.dtype == torch.float16
    assert torch.equal(out, wanted)
    for grad, other in zip(grads, torch.autograd.grad(wanted.float().sum(), halves)):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, other.float())


def test_a_compiled_graph_has_no_break():
    structure = Grid((10,), 2, 2)
    problem = attention(structure, **SMALL)
    xs = [x.float().requires_grad_() for x in (problem.query, problem.key, problem.value)]

    def run(query, key, value):
        return ndgpa.gpa(query, key, value, structure, 2, backend="triton").square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    eager, ours = run(*xs), compiled(*xs)
    assert torch.equal(eager, ours)
    for a, b in zip(
        torch.autograd.grad(eager.sum(), xs), torch.autograd.grad(ours.sum(), xs), strict=True
    ):
        assert torch.equal(a, b)


def test_a_coarse_branch_leaves_what_the_backward_reads():
    """The kernels save their output, which the branch is added to."""
    operators = [ndgpa.GPA(1, coarse="add"), ndgpa.presets.vsa((2, 4, 4), 0.0, (1, 4, 4)).operator]
    structure = Grid((2, 4, 4), (1, 4, 4))
    x = torch.randn(1, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    for operator in operators:
        grads = []
        for backend in ("triton", "torch"):
            y = x.clone().requires_grad_()
            out = replace(operator, backend=backend)(y, y, y, structure)
            grads.append(torch.autograd.grad(out.square().sum(), y)[0])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_the_interpreter_refuses_what_it_gets_wrong():
    x = torch.randn(1, 1, 10, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"interpreter does not multiply torch\.bfloat16"):
        ndgpa.gpa(x, x, x, Grid((10,), 2, 2), 2, backend="triton")


@pytest.mark.parametrize("form", FORMS)
def test_tensors_without_values_give_shapes_and_dtypes(form):
    problem = attention(Grid((5, 2), 2, (2, 1), time_axis=0), **SMALL, **form)
    found = []
    for device in ("cpu", "meta"):
        there = problem.to(device)
        there = replace(there, structure=there.structure.to(device))
        answer = there.solve(triton, torch.float16)
        found.append({name: (x.shape, x.dtype) for name, x in answer.items()})
    assert found[0] == found[1]
