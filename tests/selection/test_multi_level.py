"""MultiLevel: the contracts, its two ends (TopK and full attention), and a loop down the levels."""

import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import rows

module = importlib.import_module("ndgpa.selection.select_children")


def levels_of(structure: ndgpa.SpatialStructure, factor: int) -> int:
    """How many levels the blocks of a structure can have."""
    count = 1
    while (coarser := structure.coarsen(factor)).num_blocks < structure.num_blocks:
        structure, count = coarser, count + 1
    return count


@st.composite
def multi_levels(draw_: Any, problem: draw.Problem, counts: Any = None) -> ndgpa.MultiLevel:
    counts = st.integers(1, 4) if counts is None else counts
    factor = draw_(st.integers(2, 3))
    levels = draw_(st.integers(1, min(3, levels_of(problem.key_structure, factor))))
    force = draw_(st.sampled_from([None, ndgpa.Fixed((0,))]))
    if problem.key_structure is problem.structure and draw_(st.booleans()):
        force = ndgpa.Own() if force is None else force | ndgpa.Own()
    return ndgpa.MultiLevel(
        tuple(draw_(counts) for _ in range(levels)),
        factor,
        draw_(st.sampled_from(["head", "group", "all"])),
        force,
        draw_(st.sampled_from(["box", "mean"])),
    )


class TestMultiLevel(RuleContract, CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return multi_levels(problem)


@given(st.data(), st.booleans())
def test_everything_kept_is_full_attention(data: Any, causal: bool) -> None:
    problem = data.draw(draw.problems(time=True))
    rule = data.draw(multi_levels(problem, st.just(99)))
    out = ndgpa.gpa(*problem.inputs, problem.structure, rule, causal=causal, **problem.options)
    full = ndgpa.Full(problem.scale, problem.affinity, causal)
    expected = full(
        *problem.inputs, problem.structure, problem.key_structure, key_mask=problem.key_mask
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(st.data(), st.integers(1, 4), st.sampled_from(["head", "group", "all"]), st.booleans())
def test_one_level_is_top_k(data: Any, k: int, share: str, causal: bool) -> None:
    problem = data.draw(draw.problems(time=True))
    one, top_k = (
        ndgpa.select(
            problem.query, problem.key, problem.structure, rule, causal=causal, **problem.options
        ).blocks
        for rule in (ndgpa.MultiLevel((k,), share=share), ndgpa.TopK(k, share=share))
    )
    assert torch.equal(one, top_k)


@given(st.data())
def test_levels_are_descended_as_the_definition_says(data: Any) -> None:
    """Loops in float64: estimate the nodes, keep the best, look at their children."""
    problem = data.draw(draw.problems(max_batch=1, masked=False))
    problem.affinity = "dot"
    problem.scale = data.draw(st.sampled_from([None, 0.3, -0.7]))
    rule = replace(data.draw(multi_levels(problem)), share="head", force=None)
    kept = ndgpa.select(
        problem.query, problem.key, problem.structure, rule, **problem.options
    ).blocks
    structure, key_structure = problem.structure, problem.key_structure
    blocks, key_blocks = rows(structure.blocks), rows(key_structure.blocks)
    children, sites = [], [[[y] for y in range(key_structure.num_blocks)]]
    level = key_structure
    for _ in rule.keep[1:]:
        level = level.coarsen(rule.factor)
        children.append(rows(level.blocks))
        sites.append([[y for child in row for y in sites[-1][child]] for row in children[-1]])
    for h in range(problem.query.shape[1]):
        query = problem.query[0, h].numpy()
        key = problem.key[0, h * problem.key.shape[1] // problem.query.shape[1]].numpy()
        means = np.stack([key[ys].mean(axis=0) for ys in key_blocks])
        sizes = np.array([len(ys) for ys in key_blocks], dtype=float)
        for cell, members in enumerate(rows(structure.cells)):
            candidates = list(range(len(sites[-1])))
            for depth, count in enumerate(rule.keep):
                at = len(rule.keep) - 1 - depth
                relevance = dict.fromkeys(candidates, 0.0)
                for i in members:
                    q = problem.logit_scale * query[blocks[i]].mean(axis=0)
                    mass = {}
                    for node in candidates:
                        below = sites[at][node]
                        share = sizes[below] / sizes[below].sum()
                        logit = q @ (share @ means[below])
                        if rule.estimate == "box":
                            corners = np.stack([means[below].min(axis=0), means[below].max(axis=0)])
                            logit = (q * corners).max(axis=0).sum()
                        mass[node] = sizes[below].sum() * math.exp(logit)
                    for node in candidates:
                        relevance[node] += len(blocks[i]) * mass[node] / sum(mass.values())
                ranked = sorted(candidates, key=lambda j: (-round(relevance[j], 12), j))
                chosen = sorted(ranked[:count])
                if at:
                    candidates = [child for node in chosen for child in children[at - 1][node]]
            assert rows(kept[0, h, cell, None]) == [chosen]


@pytest.mark.parametrize(
    ("structure", "factor", "children"),
    [
        (ndgpa.Sequence(1 << 14, 4), 2, 2),
        (ndgpa.Image((128, 128), 2), 2, 4),
        (ndgpa.Clusters(torch.arange(1 << 14) // 4, torch.arange(1 << 12)), 4, 4),
        (ndgpa.PointCloud(torch.rand(1 << 12, 3, generator=draw.seeded(0)), 4), 4, 4),
    ],
    ids=["sequence", "image", "clusters", "points"],
)
def test_scores_are_counted_in_n_log_n(
    structure: ndgpa.SpatialStructure, factor: int, children: int, monkeypatch: Any
) -> None:
    """A cell scores the children of the nodes it kept at each level, and no others."""
    scored: list[int] = []
    inner = module._mass_of_children

    def counted(*args: Any) -> torch.Tensor:
        out = inner(*args)
        scored.append(out.numel())
        return out

    monkeypatch.setattr(module, "_mass_of_children", counted)
    x = torch.randn(1, 1, structure.num_sites, 2)
    keep = (3,) * 4
    ndgpa.select(x, x, structure, ndgpa.MultiLevel(keep, factor))
    assert sum(scored) == structure.num_cells * 3 * children * (len(keep) - 1)


def test_a_peak_that_the_mean_hides_is_found_by_the_bound() -> None:
    """One strong key beside its opposite: the mean of their node is that of any other."""
    key = torch.zeros(1, 1, 16, 1)
    key[0, 0, 10], key[0, 0, 11] = 6.0, -6.0
    options = {"key_structure": ndgpa.Sequence(16, 1), "scale": 1.0}
    query, one = torch.ones(1, 1, 1, 1), ndgpa.Sequence(1, 1)
    for estimate, expected in (("box", 10), ("mean", 0)):
        rule = ndgpa.MultiLevel((1, 1, 1), estimate=estimate)
        assert ndgpa.select(query, key, one, rule, **options).blocks.item() == expected


@pytest.mark.parametrize("estimate", ["box", "mean"])
@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
def test_a_future_that_is_no_number_changes_nothing_before_it(estimate: str, lost: float) -> None:
    x = torch.randn(1, 2, 64, 4, generator=draw.seeded(0))
    space, rule = ndgpa.Sequence(64, 4), ndgpa.MultiLevel((2, 2), estimate=estimate)
    before = ndgpa.gpa(x, x, x, space, rule, causal=True)
    for now in range(3, 64, 7):
        y = x.clone()
        y[:, :, now + 1 :] = lost
        after = ndgpa.gpa(y, y, y, space, rule, causal=True)
        assert torch.equal(before[:, :, : now + 1], after[:, :, : now + 1])


@pytest.mark.parametrize("affinity", ["dot", "euclidean"])
def test_a_negative_scale_seeks_the_least_product(affinity: str) -> None:
    """By hand: the bound takes the other corner of the box; far keys, where distances attract."""
    key = torch.zeros(1, 1, 16, 1)
    key[0, 0, 10], key[0, 0, 11], key[0, 0, 3] = 6.0, -7.0, 5.0
    options = {"key_structure": ndgpa.Sequence(16, 1), "scale": -1.0, "affinity": affinity}
    query, one, rule = torch.ones(1, 1, 1, 1), ndgpa.Sequence(1, 1), ndgpa.MultiLevel((1, 1, 1))
    assert ndgpa.select(query, key, one, rule, **options).blocks.item() == 11


def test_a_block_of_hidden_keys_is_in_no_box() -> None:
    """By hand: all keys are negative, so a hidden block counted as 0 would be the greatest."""
    key = torch.tensor([-5.0, -9.0, -1.0, -1.0]).view(1, 1, 4, 1)
    mask = torch.tensor([[True, False, True, True]])
    one, rule = ndgpa.Sequence(1, 1), ndgpa.MultiLevel((1, 1))
    options = {"key_structure": ndgpa.Sequence(4, 1), "scale": 1.0, "key_mask": mask}
    for sign, wanted in ((1.0, 2), (-1.0, 0)):
        query = torch.full((1, 1, 1, 1), sign)
        assert ndgpa.select(query, key, one, rule, **options).blocks.item() == wanted
        turned = ndgpa.select(-query, -key, one, rule, **options).blocks
        assert turned.item() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_children_the_lowest_number_is_kept(dtype: torch.dtype) -> None:
    """On a grid, where children that are looked at do not come in the order of their numbers."""
    key = torch.zeros(1, 1, 64, 1, dtype=dtype)
    key[0, 0, [9, 18, 20, 27, 45]] = 1.0  # rows 1, 2, 2, 3, 5
    options = {"key_structure": ndgpa.Image((8, 8), 1), "scale": 0.3}
    query, one = torch.ones(1, 1, 1, 1, dtype=dtype), ndgpa.Sequence(1, 1)
    blocks = [
        ndgpa.select(query, key, one, ndgpa.MultiLevel((99, k)), **options).blocks.flatten()
        for k in (3, 7)
    ]
    assert [x.tolist() for x in blocks] == [[9, 18, 20], [0, 1, 9, 18, 20, 27, 45]]


def test_vmap_adds_a_batch() -> None:
    space, rule = ndgpa.Image((8, 8), 1, 2), ndgpa.MultiLevel((3, 4), force=ndgpa.Own())
    query, key = (torch.randn(3, 2, h, 64, 4, generator=draw.seeded(h)) for h in (2, 1))

    def blocks(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return ndgpa.select(query, key, space, rule).blocks

    expected = torch.stack([blocks(q, k) for q, k in zip(query, key)])
    assert torch.equal(torch.vmap(blocks)(query, key), expected)
    only_keys = torch.vmap(blocks, in_dims=(None, 0))(query[0], key)
    assert torch.equal(only_keys, torch.stack([blocks(query[0], k) for k in key]))


@given(draw.clusters(group=True))
def test_groups_stay_apart(clusters: ndgpa.Clusters) -> None:
    assume(levels_of(clusters, 2) > 1)
    x = torch.randn(1, 1, clusters.num_sites, 2)
    blocks = ndgpa.select(x, x, clusters, ndgpa.MultiLevel((2, 2))).blocks[0, 0]
    for cell, row in enumerate(rows(blocks)):
        assert set(clusters.group[row].tolist()) == {int(clusters.cell_group[cell])}


def test_what_is_kept_from_one_key_structure_is_not_used_for_another() -> None:
    """Two key structures whose coarser levels are equal, and their times are not."""
    structure, rule = ndgpa.Sequence(64, 4), ndgpa.MultiLevel((2, 2))
    query = torch.randn(1, 1, 64, 8)
    for key_structure in (ndgpa.Sequence(32, 2), ndgpa.Sequence(64, 4)):
        key = torch.randn(1, 1, key_structure.num_sites, 8)
        once, again = (
            ndgpa.select(query, key, space, rule, key_structure=key_structure, causal=True).blocks
            for space in (ndgpa.Sequence(64, 4), structure)
        )
        assert torch.equal(once, again)


@pytest.mark.bad_input
def test_levels_that_do_not_nest_are_named() -> None:
    x = torch.randn(1, 1, 16, 2)
    with pytest.raises(ValueError, match="MultiLevel has 4 levels, but level 3 would have 1 nodes"):
        ndgpa.select(x, x, ndgpa.Sequence(16, 4), ndgpa.MultiLevel((1,) * 4))
    with pytest.raises(ValueError, match="use fewer levels or a larger factor"):
        ndgpa.select(x, x, ndgpa.Sequence(16, 4), ndgpa.MultiLevel((1, 1), factor=1))
    with pytest.raises(TypeError, match="keep must be a tuple"):
        ndgpa.MultiLevel(3)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        ndgpa.MultiLevel((3, 0))
