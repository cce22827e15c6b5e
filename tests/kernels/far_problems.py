"""Far fields of every form that the kernels take, by the operators' own arguments."""

from dataclasses import fields, replace

import torch
from hypothesis import strategies as st

from ndgpa.attention.far_field import FarKeys, FarQueries, literal
from ndgpa.attention.triton.far_ops import far_fused
from tests.kernels.kernel_problems import error


def far_problem(
    queries=11,
    blocks=9,
    cells=4,
    slots=2,
    batch=1,
    heads=2,
    key_heads=1,
    selection_heads=1,
    width=8,
    value_width=8,
    timed=False,
    grouped=False,
    scale=1.0,
    seed=0,
):
    """Queries, keys and a selection in float64; a block in five is not seen."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def ids(count, *shape, least=0):
        return torch.randint(least, count, shape, generator=g)

    unseen = torch.rand(batch, key_heads, blocks, generator=g) < 0.2
    keys = FarKeys(
        scale * normal(batch, key_heads, blocks, width),
        scale * normal(batch, key_heads, blocks, value_width),
        normal(batch, key_heads, blocks).masked_fill(unseen, -torch.inf),
        ids(4, blocks) if timed else None,
        ids(2, blocks) if grouped else None,
        width**-0.5,
    )
    asking = FarQueries(
        scale * normal(batch, heads, queries, width),
        torch.float64,
        ids(cells, queries),
        ids(4, queries) if timed else None,
        ids(2, queries) if grouped else None,
    )
    return asking, keys, ids(blocks, batch, selection_heads, cells, slots, least=-1).int()


def rounded(problem, dtype):
    """The same with features that the dtype holds exactly."""
    asking, keys, selected = problem
    features = {name: getattr(keys, name).to(dtype).double() for name in ("key", "value")}
    asking = replace(asking, query=asking.query.to(dtype).double())
    return asking, replace(keys, bias=keys.bias.float().double(), **features), selected


def moved(problem, device):
    """The same on another device."""
    asking, keys, selected = problem
    there = []
    for part in (asking, keys):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        tensors = {k: v.to(device) for k, v in values.items() if isinstance(v, torch.Tensor)}
        there.append(replace(part, **tensors))
    return *there, selected.to(device)


def solve(attend, problem, dtype, wide):
    """Output, log-sum-exp and gradients, with means in the wide dtype."""
    asking, keys, selected = problem
    leaves = {
        "query": asking.query.to(dtype).requires_grad_(),
        **{name: getattr(keys, name).to(wide).requires_grad_() for name in ("key", "value")},
        "bias": keys.bias.to(wide).requires_grad_(),
    }
    of_keys = {name: leaves[name] for name in ("key", "value", "bias")}
    asking = replace(asking, query=leaves["query"], dtype=dtype)
    out, lse = attend(asking, replace(keys, **of_keys), selected)
    found = {"out": out, "lse": lse}
    g = torch.Generator().manual_seed(1)
    flow, flow_lse = (torch.randn(x.shape, generator=g).to(x.device, x.dtype) for x in (out, lse))
    flow_lse = flow_lse.masked_fill(~lse.isfinite(), 0)
    grads = torch.autograd.grad((out, lse), [*leaves.values()], (flow, flow_lse))
    return {k: v.detach() for k, v in found.items()} | dict(zip(leaves, grads))


def within_budget(problem, dtype):
    """Twice the error of plain torch in that dtype, thrice for gradients, and a rounding or two."""
    problem = rounded(problem, dtype)
    exact = solve(literal, problem, torch.float64, torch.float64)
    ours = solve(far_fused, problem, dtype, torch.float32)
    other = solve(literal, problem, dtype, dtype)
    logit = 1 + exact["lse"].nan_to_num(0, 0, 0).abs().max()
    for name, x in exact.items():
        eps = torch.finfo(torch.float32 if name == "lse" else dtype).eps
        least = (eps + logit * torch.finfo(torch.float32).eps) * x.nan_to_num(0, 0, 0).norm()
        budget = (2 if name in ("out", "lse") else 3) * error(other[name], x) + 2 * least
        assert error(ours[name], x) <= budget, (name, error(ours[name], x), budget)


@st.composite
def problems(draw):
    heads, key_heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    return far_problem(
        queries=draw(st.integers(1, 20)),
        blocks=draw(st.integers(1, 40)),
        cells=draw(st.integers(1, 5)),
        slots=draw(st.integers(0, 5)),
        batch=draw(st.integers(1, 2)),
        heads=heads,
        key_heads=key_heads,
        selection_heads=draw(st.sampled_from([1, key_heads, heads])),
        width=draw(st.integers(1, 20)),
        value_width=draw(st.integers(1, 20)),
        timed=draw(st.booleans()),
        grouped=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 4.0])),
        seed=draw(st.integers(0, 2**31)),
    )
