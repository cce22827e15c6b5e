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
        (ndgpa.TopK(2, force=ndgpa.Window(1) | ndgpa.Fixed((0,))), True),
        (ndgpa.TopK(2, force=ndgpa.TopK(1, share="all") | ndgpa.Own()), True),
        (ndgpa.Refine(ndgpa.TopK(4, estimate="site"), 2, 3, "site"), True),
        (ndgpa.Refine(ndgpa.Propagate(ndgpa.TopK(2)), 3), True),
        (ndgpa.TopRatio(0.4), True),
        (ndgpa.MultiLevel((3, 3)), True),
        (ndgpa.Codebook(2, 8), True),
        (ndgpa.StraightThrough(ndgpa.TopK(2)), False),
        (ndgpa.PerturbedTopK(2, seed=1), False),
    ],
    ids=[
        "union",
        "forced",
        "forced by relevance",
        "a second look by sites",
        "neighbours",
        "ratio",
        "levels",
        "codes",
        "straight-through",
        "perturbed",
    ],
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
@pytest.mark.parametrize(
    "rule", [ndgpa.Fixed((0, 1)), ndgpa.MultiLevel((3, 3))], ids=["fixed", "levels"]
)
def test_a_rule_compiles_on_a_grid_that_was_never_used(rule: Rule) -> None:
    x = torch.randn(1, 2, 40, 8)

    def call(query: torch.Tensor, space: ndgpa.SpatialStructure) -> torch.Tensor:
        return ndgpa.gpa(query, x, x, space, rule)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    spaces = [ndgpa.Sequence(40, 4, 2) for _ in range(2)]
    torch.testing.assert_close(compiled(x, spaces[0]), call(x, spaces[1]))


@pytest.mark.compiled
@pytest.mark.parametrize(
    "rule", [ndgpa.TopK(2), ndgpa.Fixed((0, 1)), ndgpa.TopP(0.5)], ids=["top-k", "fixed", "top-p"]
)
@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [7, 3, 1, 5]], ids=["even", "ragged"])
def test_a_rule_compiles_on_clusters_that_were_never_used(rule: Rule, sizes: list[int]) -> None:
    x = torch.randn(1, 2, 16, 8)
    block_of_site = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    first, second = (ndgpa.Clusters(block_of_site, torch.arange(4) // 2) for _ in range(2))

    def call(query: torch.Tensor, space: ndgpa.SpatialStructure) -> torch.Tensor:
        return ndgpa.gpa(query, x, x, space, rule)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, first), call(x, second))


@pytest.mark.compiled
def test_levels_compile_on_clusters_that_were_used() -> None:
    space, x = ndgpa.Clusters(torch.arange(40) // 5, torch.arange(8) // 2), torch.randn(1, 2, 40, 8)

    def call(query: torch.Tensor) -> torch.Tensor:
        return ndgpa.gpa(query, x, x, space, ndgpa.MultiLevel((2, 2)))

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


@pytest.mark.compiled
def test_the_operators_of_selection_are_well_formed() -> None:
    """Schema, fake tensors and tracing, by torch's own check."""
    query, key = torch.randn(1, 2, 3, 2, 4), torch.randn(1, 1, 5, 2, 4)
    kept = torch.tensor([[0, 2, -1], [1, 3, 4], [4, -1, -1]]).int().expand(1, 2, 3, 3)
    children = torch.arange(10).view(5, 2)
    times = (torch.tensor([2, 5, 9]), torch.arange(10))
    forced = torch.tensor([[9], [-1], [0]]).expand(1, 2, 3, 1)
    options = (torch.zeros(1, 5, 2), kept.contiguous(), torch.ones(1, 3, 2))
    call = torch.ops.ndgpa.select_children.default
    torch.library.opcheck(call, (query, key, *options, forced, children, 2, "head", 0.5, *times))
    torch.library.opcheck(call, (query, key, *options, None, children, 99, "head", 0.5, None, None))
    coarse = (query, key[:, :, :, 0].contiguous(), None, None, torch.ones(1, 3, 2))
    more = (forced.clamp(max=4), None, None, 2, "mass", "head", 0.5, times[0], torch.arange(5))
    scores = torch.randn(2, 3, 5, requires_grad=True)
    call = torch.ops.ndgpa.perturbed_top_k.default
    torch.library.opcheck(call, (scores, 2, 0.5, 3, torch.tensor(1)))
    call = torch.ops.ndgpa.select_top_k.default
    torch.library.opcheck(call, (*coarse, *more, torch.tensor([1, 2, 1]), 0.5, 1))
