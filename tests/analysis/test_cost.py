"""The paper's analytic table of affinity entries."""

import pytest

import ndgpa
from ndgpa.analysis import full_entries, gpa_entries, low_rank_entries

MILLION = 1e6


def levels(coarse: int, size: int) -> ndgpa.Grid:
    """An image whose Phase 1 runs at coarse x coarse."""
    return ndgpa.Image((size, size), block=size // coarse)


@pytest.mark.parametrize(
    ("size", "full", "pivot", "coarser", "finer", "low_rank"),
    [
        (128, 268.4, (16.78, 0.79), (1.05, 3.15), None, 16.8),
        (256, 4295.0, (16.78, 12.58), (1.05, 50.33), (268.4, 3.15), 67.1),
    ],
)
def test_the_table_of_the_paper_in_millions(
    size: int,
    full: float,
    pivot: tuple[float, float],
    coarser: tuple[float, float],
    finer: tuple[float, float] | None,
    low_rank: float,
) -> None:
    assert full_entries(size**2) / MILLION == pytest.approx(full, rel=1e-3)
    assert low_rank_entries(512, size**2) / MILLION == pytest.approx(low_rank, rel=2e-3)
    for coarse, expected in ((64, pivot), (32, coarser), (128, finer)):
        if expected is None:
            continue
        entries = gpa_entries(levels(coarse, size), 12)
        assert entries.phase_1 / MILLION == pytest.approx(expected[0], rel=2e-3)
        assert entries.phase_2 / MILLION == pytest.approx(expected[1], rel=5e-3)


def test_the_sums_give_the_order_of_memory_that_the_paper_measured() -> None:
    def total(coarse: int) -> float:
        """At 128 and 256; full attention where Phase 1 would be at the level's own size."""
        return (
            sum(
                full_entries(size**2)
                if coarse == size
                else gpa_entries(levels(coarse, size), 12).total
                for size in (128, 256)
            )
            / MILLION
        )

    low_rank = sum(low_rank_entries(512, size**2) for size in (128, 256)) / MILLION
    assert total(64) == pytest.approx(46.9, rel=2e-3)
    assert total(32) == pytest.approx(55.6, rel=2e-3)
    assert total(128) == pytest.approx(540, rel=2e-3)
    assert low_rank == pytest.approx(83.9, rel=2e-3)
    assert total(64) < total(32) < low_rank < total(128)


def test_entries_count_what_a_cross_attention_computes() -> None:
    queries, keys = ndgpa.Sequence(12, 3), ndgpa.Image((4, 4), 2)
    entries = gpa_entries(queries, 3, keys)
    assert (entries.phase_1, entries.phase_2) == (4 * 4, 12 * 3 * 4)
    assert entries.total == 16 + 144


def test_more_blocks_than_there_are_cost_full_attention() -> None:
    ragged = ndgpa.Sequence(10, 4)
    assert gpa_entries(ragged, 99).phase_2 == full_entries(10)


@pytest.mark.bad_input
def test_no_block_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        gpa_entries(ndgpa.Sequence(4, 2), 0)
