"""Who holds what, and what follows for the bytes that are sent."""

import itertools

import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.distributed import (
    ByTraffic,
    Hilbert,
    InOrder,
    Morton,
    Placement,
    foretell,
    lay_out,
    traffic_of,
)

PLACEMENTS = (InOrder(), Morton(), Hilbert())
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 7), st.sampled_from(PLACEMENTS))
def test_every_block_is_on_one_rank(
    shape: tuple[int, ...], ranks: int, placement: Placement
) -> None:
    space = ndgpa.Grid(shape, 1, tuple(min(2, size) for size in shape))
    layout = lay_out(space, ranks, placement)
    blocks = torch.cat([layout.blocks_of(rank) for rank in range(ranks)])
    assert sorted(blocks.tolist()) == list(range(space.num_blocks))
    for rank in range(ranks):
        own = layout.blocks_of(rank)
        assert set(layout.rank_of_block[own].tolist()) <= {rank}
        assert layout.place_of_block[own].tolist() == list(range(len(own)))
        assert set(space.cell_of_block[own].tolist()) == set(layout.cells_of(rank).tolist())
    assert sum(layout.sites_per_rank) == space.num_sites


@given(SHAPES, st.integers(1, 7))
def test_no_rank_has_more_than_its_share_by_a_cell(shape: tuple[int, ...], ranks: int) -> None:
    space = ndgpa.Grid(shape, 1, tuple(min(3, size) for size in shape))
    largest = int((space.cell_sites >= 0).sum(dim=1).max())
    most = max(lay_out(space, ranks).sites_per_rank)
    assert most <= space.num_sites / ranks + largest


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (4, 4, 4), (8, 8, 8)])
def test_the_hilbert_curve_steps_to_a_neighbour(shape: tuple[int, ...]) -> None:
    order = Hilbert().order(ndgpa.Grid(shape, 1))
    place = torch.stack(torch.unravel_index(order, shape), dim=1)
    assert (place.diff(dim=0).abs().sum(dim=1) == 1).all()


def test_the_morton_curve_takes_squares_in_turn() -> None:
    assert Morton().order(ndgpa.Grid((2, 4), 1)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_cells_that_read_each_other_come_together() -> None:
    reads = torch.zeros(8, 8)
    for a, b in itertools.product((0, 3, 4, 6), repeat=2):
        reads[a, b] = 1
    for a, b in itertools.product((1, 2, 5, 7), repeat=2):
        reads[a, b] = 1
    layout = lay_out(ndgpa.Sequence(8, 1), 2, ByTraffic(reads))
    halves = {tuple(sorted(layout.cells_of(rank).tolist())) for rank in (0, 1)}
    assert halves == {(0, 3, 4, 6), (1, 2, 5, 7)}


def test_traffic_counts_the_cells_of_what_is_read() -> None:
    space = ndgpa.Sequence(8, 1, 2)  # cells of 2 blocks
    blocks = torch.tensor([[0, 1, -1], [7, 0, 6], [2, 2, 5], [-1, -1, -1]])[None, None]
    wanted = [[2, 0, 0, 0], [1, 0, 0, 2], [0, 2, 1, 0], [0, 0, 0, 0]]
    assert traffic_of(blocks, space).tolist() == wanted


@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))
def test_what_is_foretold_is_a_union_over_cells(
    ranks: int, seed: int, heads: tuple[int, int]
) -> None:
    space, (heads_, key_heads) = ndgpa.Image((9, 14), 2, 2), heads
    drawn = torch.Generator().manual_seed(seed)
    count = (1, key_heads, heads_)[seed % 3]
    shape = (2, count, space.num_cells, 3)
    blocks = torch.randint(-1, space.num_blocks, shape, generator=drawn)
    layout = lay_out(space, ranks, Hilbert())
    options = {"heads": heads_, "key_heads": key_heads, "features": (3, 5)}
    told = foretell(blocks, layout, **options)
    fetched = set()
    for batch, head, cell, slot in itertools.product(*map(range, shape)):
        block, reader = int(blocks[batch, head, cell, slot]), -1
        if block < 0:
            continue
        for rank in range(ranks):
            if cell in layout.cells_of(rank):
                reader = rank
        holder = int(layout.rank_of_block[block])
        if holder == reader:
            continue
        own = range(key_heads) if count == 1 else [head * key_heads // count]
        fetched |= {(reader, holder, batch, key_head, block) for key_head in own}
    units = torch.zeros(ranks, ranks, dtype=torch.int64)
    for reader, holder, *_ in fetched:
        units[holder, reader] += 1
    assert torch.equal(told.units, units)
    means = (ranks - 1) * 2 * key_heads * max(layout.blocks_per_rank) * 3 * 4
    assert torch.equal(told.sent, units.sum(dim=1) * (4 * 8 * 4) + means)
