"""Small cells that share a program: each reads its own blocks, and nothing of its neighbours'."""

import pytest
import torch

from ndgpa import Clusters, Grid
from ndgpa.attention.triton.inputs import Inputs
from ndgpa.attention.triton.tiles import forward_tile, problem_of, query_major_tile
from tests.kernels.kernel_problems import attention, triton, within_budget

SMALL = {
    "four cells of four": (Grid((6, 10), 2, 1), 1),
    "eight cells of two heads": (Grid((13,), 1, 1), 2),
    "two cells, five rows, ragged": (Clusters(torch.arange(11) // 5, torch.arange(3)), 1),
    "blocks of more than a tile": (Grid((140,), 70, 1), 1),
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("name", "causal"),
    [
        pytest.param(name, causal, marks=[pytest.mark.slow] if causal and "tile" in name else [])
        for name in SMALL
        for causal in (False, True)
    ],
)
def test_small_cells_are_within_the_budget(name, causal, dtype):
    structure, heads = SMALL[name]
    small = Grid((25,), 3, 1) if "more than" in name else structure
    if causal:
        structure, small = (
            Clusters(s.block_of_site, s.cell_of_block, torch.arange(s.num_sites) // 2)
            for s in (structure, small)
        )
    width = 72 if name == "four cells of four" else 16  # features in two tiles
    problem = attention(
        small, structure, batch=2, heads=heads, biased=True, keyed=True, causal=causal, slots=2,
        width=width, value_width=width,
    )  # fmt: skip
    problem.blocks[:, :, 0, :] = 0  # a block that a cell reads twice
    features = (problem.query, problem.key, problem.value, None, None)
    tables = (problem.blocks, small.cell_sites, structure.blocks, None, None)
    asked = problem_of(Inputs(*features, *tables, scale=1.0))
    assert forward_tile(asked).members == query_major_tile(asked).members > 1
    within_budget(problem, dtype)


def test_what_one_member_reads_never_reaches_another():
    """NaN in a block that only the first of four cells reads."""
    problem = attention(Grid((16,), 2, 2), heads=1, biased=True, slots=2)
    problem.blocks.copy_(torch.tensor([[0, 1], [2, 3], [3, 4], [5, -1]]))
    clean = problem.solve(triton, torch.float32)
    problem.key[:, :, :4], problem.value[:, :, :4] = torch.nan, torch.inf
    dirty = problem.solve(triton, torch.float32)
    for name in ("out", "lse", "query", "key", "value"):
        assert torch.equal(dirty[name][:, :, 4:], clean[name][:, :, 4:]), name
        assert not dirty["out"][:, :, :4].isfinite().any()
    assert torch.equal(dirty["slot bias"][:, :, 1:], clean["slot bias"][:, :, 1:])


@pytest.mark.parametrize("cell", [1, 4])
def test_a_future_that_is_not_finite_does_not_exist(cell):
    """Of the block that a query stands in, it sees what is past and not what is to come."""
    problem = attention(Grid((24,), 6, cell, time_axis=0), causal=True, slots=4, heads=1)
    problem.blocks.copy_(torch.arange(4))
    clean = problem.solve(triton, torch.float32)
    problem.key[:, :, 10:], problem.value[:, :, 10:] = torch.nan, -torch.inf
    problem.grad_out[:, :, 10:], problem.grad_lse[:, :, 10:] = 0, 0
    dirty = problem.solve(triton, torch.float32)
    for name in ("out", "lse", "query"):
        assert torch.equal(dirty[name][:, :, :10], clean[name][:, :, :10]), name
        assert dirty[name][:, :, 10:].isnan().all()


def test_the_largest_numbers_are_finite():
    problem = attention(Grid((8,), 2, 1, time_axis=0), causal=True, heads=1)
    problem.query[:], problem.key[:], problem.value[:] = 0, 65504, 65504
    assert (problem.solve(triton, torch.float16)["out"][:, :, 0] == 65504).all()
