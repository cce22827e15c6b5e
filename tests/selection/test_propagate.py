"""What neighbours have found is moved along, against loops over places of grids."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import rows


class TestPropagate(RuleContract, CausalContract):
    def problems(self, time: bool | None = None, **options: Any) -> st.SearchStrategy[draw.Problem]:
        return draw.problems(same=True, spaces=draw.grids(time=time), **options)

    def rules(self, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        first = st.builds(ndgpa.TopK, st.integers(1, 3), share=st.sampled_from(["head", "all"]))
        first |= st.sampled_from([ndgpa.StraightThrough(ndgpa.TopK(2)), ndgpa.Fixed((0,))])
        named = first.map(ndgpa.Propagate)
        return named | named.map(lambda rule: ndgpa.Refine(rule, 2))

    def asked_by(self, problem: draw.Problem, cell: int) -> list[int]:
        """Itself and the next cells."""
        assert isinstance(problem.structure, ndgpa.Grid)
        cells = problem.structure.grid_of_cells
        at = np.stack(np.unravel_index(range(problem.structure.num_cells), cells), axis=-1)
        return [int(x) for x in (np.abs(at - at[cell]).sum(axis=1) <= 1).nonzero()[0]]


@given(st.data())
def test_what_is_named_is_found_by_a_walk_over_the_grid(data: Any) -> None:
    grid, k = data.draw(draw.grids()), data.draw(st.integers(1, 3))
    x = torch.randn(2, 1, grid.num_sites, 3, generator=draw.seeded(data.draw(st.integers(0, 99))))
    first, spread = (
        ndgpa.select(x, x, grid, rule).blocks[:, 0]
        for rule in (ndgpa.TopK(k), ndgpa.Propagate(ndgpa.TopK(k)))
    )
    for before, after in zip(first, spread, strict=True):
        found = rows(before)
        for cell, row in enumerate(rows(after)):
            assert row == sorted(walked(grid, found, cell))


def walked(grid: ndgpa.Grid, found: list[list[int]], cell: int) -> set[int]:
    """The blocks of a cell: its own, those beside them, and those of the next cells, moved."""
    counts, cells = grid.grid_of_blocks, grid.grid_of_cells
    here = np.array(np.unravel_index(cell, cells))
    result = set(found[cell])
    for axis in range(len(counts)):
        for sign in (1, -1):
            one = np.eye(len(counts), dtype=int)[axis] * sign
            result |= moved(found[cell], one, counts)
            there = here + one
            if (there >= 0).all() and (there < cells).all():
                theirs = found[int(np.ravel_multi_index(tuple(there), cells))]
                result |= moved(theirs, -one * grid.cell_shape[axis], counts)
    return result


def moved(blocks: list[int], by: np.ndarray, counts: tuple[int, ...]) -> set[int]:
    """The blocks that lie `by` away and within the grid."""
    at = np.stack(np.unravel_index(blocks, counts), axis=-1) + by
    inside = [tuple(place) for place in at if (place >= 0).all() and (place < counts).all()]
    return {int(np.ravel_multi_index(place, counts)) for place in inside}


def test_keys_of_another_size_are_moved_by_the_same_share() -> None:
    """Cells of one block of 4; there are twice as many key blocks, so the move is by two."""
    queries, keys = ndgpa.Sequence(16, 4), ndgpa.Sequence(32, 4)
    query, key = torch.zeros(1, 1, 16, 4), torch.zeros(1, 1, 32, 1)
    query[0, 0, 8:12, 0] = 1  # cell 2 looks for block 4, the others for nothing: block 0
    key[0, 0, 16:20] = 1
    rule = ndgpa.Propagate(ndgpa.TopK(1))
    kept = ndgpa.select(query[..., :1], key, queries, rule, key_structure=keys).blocks[0, 0]
    assert rows(kept) == [[0, 1], [0, 1, 2], [2, 3, 4, 5], [0, 1, 6]]


def test_what_one_cell_knows_reaches_all_in_time() -> None:
    """A picture is moved by 5 blocks; only the first cell is told so, and the others hear of it."""
    count, by = 16, 5
    space = ndgpa.Sequence(4 * count, 4)
    key = torch.randn(1, 1, 4 * count, 8, generator=draw.seeded(0))
    query = 8 * key.roll(-4 * by, 2)
    told = torch.full((1, 1, count, 1), count - 1, dtype=torch.int32)
    told[0, 0, 0] = by
    rule: Rule = Told(told)
    for _ in range(count - by):
        rule = ndgpa.Refine(ndgpa.Propagate(rule), 1, parts=4)
    kept = ndgpa.select(query, key, space, rule).blocks[0, 0, :, 0]
    assert kept[: count - by].tolist() == list(range(by, count))


class Told(Rule):
    """Blocks that are known before."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks = blocks

    def select(self, problem: Any) -> ndgpa.Selection:
        return ndgpa.Selection(self.blocks)


@pytest.mark.bad_input
def test_what_cannot_be_is_said() -> None:
    x = torch.zeros(1, 1, 4, 1)
    with pytest.raises(TypeError, match="Propagate needs rules; got int"):
        ndgpa.Propagate(12)  # type: ignore[arg-type]
    clusters = ndgpa.Clusters(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0]))
    with pytest.raises(TypeError, match="Propagate needs a Grid as structure; got Clusters"):
        ndgpa.select(x, x, clusters, ndgpa.Propagate(ndgpa.TopK(1)))
    line, image = ndgpa.Sequence(4, 2), ndgpa.Image((2, 2), 1)
    with pytest.raises(ValueError, match="rank 1 but keys on one of rank 2"):
        ndgpa.select(x, x, line, ndgpa.Propagate(ndgpa.TopK(1)), key_structure=image)
