"""The laws of the public call, on every structure."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.testing import draw, oracle


@given(st.data())
@draw.MORE
def test_it_equals_algorithm_1(data: Any) -> None:
    problem = data.draw(draw.problems())
    k = data.draw(st.integers(1, 5))
    expected = oracle.algorithm_1(
        *problem.inputs,
        problem.structure,
        problem.key_structure,
        k,
        problem.logit_scale,
        problem.affinity,
        problem.key_mask,
    )
    out = ndgpa.gpa(*problem.inputs, problem.structure, k, **problem.options)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_every_block_kept_is_full_attention(data: Any) -> None:
    problem = data.draw(draw.problems())
    mask = None if problem.key_mask is None else problem.key_mask[:, None]
    expected = oracle.full_attention(*problem.inputs, problem.logit_scale, problem.affinity, mask)
    out = ndgpa.gpa(
        *problem.inputs, problem.structure, problem.key_structure.num_blocks, **problem.options
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(draw.clusters(), st.integers(1, 4), st.integers(0, 2**20))
def test_renumbering_the_sites_renumbers_the_output(
    clusters: ndgpa.Clusters, k: int, seed: int
) -> None:
    generator = draw.seeded(seed)
    n = clusters.num_sites
    order = torch.randperm(n, generator=generator)  # new site i is old site order[i]
    renumbered = ndgpa.Clusters(clusters.block_of_site[order], _cell_of_block(clusters))
    inputs = [torch.randn(1, 2, n, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    out = ndgpa.gpa(*inputs, clusters, k)
    again = ndgpa.gpa(*(x[:, :, order] for x in inputs), renumbered, k)
    torch.testing.assert_close(again, out[:, :, order], rtol=1e-12, atol=1e-12)


def _cell_of_block(structure: ndgpa.SpatialStructure) -> torch.Tensor:
    cell_of_block = torch.empty(structure.num_blocks, dtype=torch.int64)
    for cell, blocks in enumerate(oracle.rows(structure.cells)):
        cell_of_block[blocks] = cell
    return cell_of_block


@given(draw.grids(max_rank=3), st.data())
def test_an_axis_of_size_1_changes_nothing(grid: ndgpa.Grid, data: Any) -> None:
    axis = data.draw(st.integers(0, len(grid.shape)))

    def with_axis(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (*sizes[:axis], 1, *sizes[axis:])

    longer = ndgpa.Grid(*map(with_axis, (grid.shape, grid.block_shape, grid.cell_shape)))
    x = torch.randn(1, 1, grid.num_sites, 4)
    assert torch.equal(ndgpa.gpa(x, x, x, grid, 2), ndgpa.gpa(x, x, x, longer, 2))


@given(draw.grids(), st.integers(1, 4))
def test_a_grid_given_as_clusters_gives_the_same(grid: ndgpa.Grid, k: int) -> None:
    clusters = ndgpa.Clusters(grid.block_of_site, _cell_of_block(grid))
    x = torch.randn(2, 1, grid.num_sites, 3, dtype=torch.float64)
    torch.testing.assert_close(
        ndgpa.gpa(x, x, x, clusters, k), ndgpa.gpa(x, x, x, grid, k), rtol=1e-12, atol=1e-12
    )


@given(st.data())
def test_batches_and_heads_do_not_see_each_other(data: Any) -> None:
    problem = data.draw(draw.problems())
    k = data.draw(st.integers(1, 4))
    whole = ndgpa.gpa(*problem.inputs, problem.structure, k, **problem.options)
    repeats = problem.query.shape[1] // problem.key.shape[1]
    for b in range(whole.shape[0]):
        for h in range(whole.shape[1]):
            head = slice(h // repeats, h // repeats + 1)
            mask = None if problem.key_mask is None else problem.key_mask[b, None]
            alone = ndgpa.gpa(
                problem.query[b, None, h, None],
                problem.key[b, None, head],
                problem.value[b, None, head],
                problem.structure,
                k,
                **{**problem.options, "key_mask": mask},
            )
            torch.testing.assert_close(alone[0, 0], whole[b, h], rtol=1e-12, atol=1e-12)


@given(draw.clusters(group=True), st.integers(1, 5))
def test_groups_do_not_see_each_other(clusters: ndgpa.Clusters, k: int) -> None:
    """What another group holds does not matter, NaN included."""
    assert clusters.group is not None
    inputs = [torch.randn(1, 1, clusters.num_sites, 3) for _ in range(3)]
    out = ndgpa.gpa(*inputs, clusters, k)
    group = clusters.group[clusters.block_of_site]
    for own in group.unique():
        others = (group != own)[:, None]
        poisoned = [x.masked_fill(others, torch.nan) for x in inputs]
        same = ndgpa.gpa(*poisoned, clusters, k)[:, :, group == own]
        assert torch.equal(same, out[:, :, group == own])


@given(st.data())
def test_masked_keys_do_not_exist(data: Any) -> None:
    problem = data.draw(draw.problems(masked=True))
    assert problem.key_mask is not None
    unseen = ~problem.key_mask[:, None, :, None]
    query, key, value = problem.inputs
    out, poisoned = (
        ndgpa.gpa(query, k, v, problem.structure, 2, **problem.options)
        for k, v in (
            (key, value),
            (key.masked_fill(unseen, torch.nan), value.masked_fill(unseen, torch.nan)),
        )
    )
    assert torch.equal(out, poisoned)


def test_a_query_that_sees_nothing_gives_0() -> None:
    x = torch.randn(2, 1, 8, 4, requires_grad=True)
    mask = torch.tensor([[True] * 8, [False] * 8])
    structure = ndgpa.Sequence(8, 2)
    out = ndgpa.gpa(x, x, x, structure, 2, key_mask=mask)
    assert bool((out[1] == 0).all())
    out.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    selection = ndgpa.select(x, x, structure, 2, key_mask=mask)
    assert bool((selection.blocks[1] == -1).all())
    _, lse = ndgpa.attend(x, x, x, selection, structure, key_mask=mask, return_lse=True)
    assert bool((lse[1] == -torch.inf).all())


def test_keys_that_are_not_selected_have_no_gradient() -> None:
    """C17 of the paper's claims: the selection carries no gradient."""
    inputs = [torch.randn(1, 1, 64, 4, requires_grad=True) for _ in range(3)]
    structure = ndgpa.Image((8, 8), 2, 2)
    selection = ndgpa.select(inputs[0], inputs[1], structure, 2)
    ndgpa.gpa(*inputs, structure, 2).square().sum().backward()
    read = torch.zeros(64, dtype=torch.bool)
    read[structure.upsample(selection.blocks.unique()).flatten()] = True
    assert not bool(read.all())
    for x in inputs[1:]:
        assert x.grad is not None
        touched = (x.grad[0, 0] != 0).any(dim=-1)
        assert torch.equal(touched, read)


def test_two_queries_of_a_cell_get_different_outputs() -> None:
    x = torch.randn(1, 1, 64, 4)
    structure = ndgpa.Image((8, 8), 2, 2)
    parts = structure.partition(ndgpa.gpa(x, x, x, structure, 2))
    assert bool((parts[:, :, :, 0] != parts[:, :, :, 1]).any(dim=-1).all())


def test_key_sets_of_cells_overlap_freely() -> None:
    """Every cell wants the same key block."""
    key = torch.zeros(1, 1, 16, 1)
    key[0, 0, 4:8] = 5.0
    selection = ndgpa.select(torch.ones(1, 1, 16, 1), key, ndgpa.Sequence(16, 4), 1)
    assert selection.blocks.flatten().tolist() == [1, 1, 1, 1]


def test_one_cell_shares_one_key_set() -> None:
    x = torch.randn(1, 1, 64, 4)
    selection = ndgpa.select(x, x, ndgpa.Image((8, 8), 2, cell=4), 3)
    assert selection.blocks.shape == (1, 1, 1, 3)


def test_downsampling_by_1_is_top_k_attention_of_every_query() -> None:
    """C6: blocks and cells of one site, against a sort of the full logits."""
    q, k, v = (torch.randn(1, 1, 30, 4, dtype=torch.float64) for _ in range(3))
    out = ndgpa.gpa(q, k, v, ndgpa.Sequence(30, 1), 5, scale=1.0)
    logits = q @ k.mT
    least = logits.sort(dim=-1, descending=True).values[..., 4, None]
    expected = logits.masked_fill(logits < least, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(out, expected)


def test_zero_batches_give_zero_batches() -> None:
    x = torch.randn(0, 1, 12, 4, requires_grad=True)
    out = ndgpa.gpa(x, x, x, ndgpa.Image((4, 3), 2), 2)
    assert out.shape == (0, 1, 12, 4)
    out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_inputs_and_nothing_else(dtype: torch.dtype) -> None:
    inputs = [torch.randn(1, 2, 48, 8, requires_grad=True) for _ in range(3)]
    structure = ndgpa.Grid((6, 8), 2)
    options = {"affinity": "euclidean", "key_mask": torch.rand(1, 48) < 0.8}
    with torch.autocast("cpu", dtype):
        out = ndgpa.gpa(*inputs, structure, 3, **options)
        out.float().square().sum().backward()
    assert out.dtype == dtype
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    selection = ndgpa.select(inputs[0], inputs[1], structure, 3, **options)
    plain = ndgpa.attend(*leaves, selection, structure, **options)
    plain.float().square().sum().backward()
    assert torch.equal(out, plain)
    for x, leaf in zip(inputs, leaves):
        assert x.grad is not None
        assert leaf.grad is not None
        assert torch.equal(x.grad, leaf.grad.float())


def test_vmap_adds_a_batch() -> None:
    x = torch.randn(3, 2, 1, 20, 4)
    structure = ndgpa.Sequence(20, 4)
    mapped = torch.vmap(lambda y: ndgpa.gpa(y, y, y, structure, 2))(x)
    for one, expected in zip(mapped, x):
        assert torch.equal(one, ndgpa.gpa(expected, expected, expected, structure, 2))


def test_retained_mass_is_larger_on_a_smooth_field_than_on_noise() -> None:
    """C9, the paper's assumption of locality: share of full attention on the kept keys."""
    structure = ndgpa.Image((32, 32), 4, 2)
    noise = torch.randn(1, 4, 32, 32)
    smooth = torch.nn.functional.avg_pool2d(noise, 9, stride=1, padding=4)
    smooth = smooth / smooth.std()
    kept = []
    for field in (smooth, noise):
        x = 2 * field.flatten(2).mT[:, None]
        blocks = ndgpa.select(x, x, structure, 4, scale=1.0).blocks
        weights = (x @ x.mT).softmax(-1)[0, 0]
        chosen = torch.zeros(structure.num_cells, structure.num_blocks, dtype=torch.bool)
        chosen.scatter_(1, blocks[0, 0].long(), True)
        seen = chosen[structure.cell_of_site][:, structure.block_of_site]
        kept.append(float((weights * seen).sum(-1).mean()))
    assert kept[0] > 2 * kept[1]


def test_the_oracle_keeps_what_it_says() -> None:
    """The oracle itself, by hand: two blocks of one site, the second nearer."""
    scores = np.array([[0.1, 0.7, np.nan, 0.7]])
    assert oracle.most_relevant(scores[0], 2) == [1, 3]
    assert oracle.most_relevant(scores[0], 1, forced=[1]) == [1, 3]
