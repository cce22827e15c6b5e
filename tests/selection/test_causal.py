"""Causal selection: strict, exact where everything is kept, and as its definition says."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.cache.layout import Layout, NewestCells
from ndgpa.selection import Rule
from ndgpa.structures.candidates import blocks_between
from ndgpa.testing import CausalContract, draw
from ndgpa.testing.oracle import logit, most_relevant, rows, softmax


@st.composite
def top_ks(draw_: Any, problem: draw.Problem) -> ndgpa.TopK:
    force: Rule | None = None
    if draw_(st.booleans()):
        force = ndgpa.Fixed((draw_(st.integers(0, problem.key_structure.num_blocks - 1)),))
        if problem.key_structure is problem.structure and draw_(st.booleans()):
            force = force | ndgpa.Own()
    return ndgpa.TopK(
        draw_(st.integers(1, 4)),
        draw_(st.sampled_from(["mass", "logit"])),
        draw_(st.sampled_from(["head", "group", "all"])),
        force,
    )


class TestTopK(CausalContract):
    @staticmethod
    def rules(problem: draw.Problem) -> st.SearchStrategy[Rule]:
        return top_ks(problem)


@given(st.data())
def test_everything_kept_is_full_causal_attention(data: Any) -> None:
    problem = data.draw(draw.problems(time=True))
    out = ndgpa.gpa(*problem.inputs, problem.structure, 999, causal=True, **problem.options)
    full = ndgpa.Full(problem.scale, problem.affinity, causal=True)
    expected = full(
        *problem.inputs, problem.structure, problem.key_structure, key_mask=problem.key_mask
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_a_cell_chooses_as_the_definition_says(data: Any) -> None:
    """Loops: queries of the earliest time, blocks wholly past, overlapping blocks besides."""
    problem = data.draw(draw.problems(time=True, masked=False, max_batch=1))
    kind = data.draw(st.sampled_from(["mass", "logit"]))
    k = data.draw(st.integers(1, 4))
    kept = ndgpa.select(
        problem.query,
        problem.key,
        problem.structure,
        ndgpa.TopK(k, kind),
        causal=True,
        **problem.options,
    ).blocks
    time, key_time = problem.structure.time.numpy(), problem.key_structure.time.numpy()
    blocks, key_blocks = rows(problem.structure.blocks), rows(problem.key_structure.blocks)
    for h in range(problem.query.shape[1]):
        query = problem.query[0, h].numpy()
        key = problem.key[0, h * problem.key.shape[1] // problem.query.shape[1]].numpy()
        for cell, members in enumerate(rows(problem.structure.cells)):
            sites = [x for i in members for x in blocks[i]]
            now, until = time[sites].min(), time[sites].max()
            until = max(until, *(_end(problem.structure, time[blocks[i]]) for i in members))
            ends = [_end(problem.key_structure, key_time[ys]) for ys in key_blocks]
            past = [j for j, end in enumerate(ends) if end <= now]
            partly = [
                j
                for j, ys in enumerate(key_blocks)
                if key_time[ys].min() <= until and ends[j] > now
            ]
            scores = np.full(len(key_blocks), np.nan)
            scores[past] = 0.0
            for i in members:
                first = [x for x in blocks[i] if time[x] == now]
                if not first:
                    continue
                mean = query[first].mean(axis=0)
                logits = [
                    logit(
                        mean, key[key_blocks[j]].mean(axis=0), problem.logit_scale, problem.affinity
                    )
                    for j in past
                ]
                sizes = [len(key_blocks[j]) for j in past]
                row = softmax(logits, sizes) if kind == "mass" else np.array(logits)
                scores[past] += len(first) * row
            expected = sorted(most_relevant(scores, k) + partly)
            assert rows(kept[0, h, cell, None]) == [expected]


def _end(structure: ndgpa.SpatialStructure, times: np.ndarray) -> int:
    """The latest time of a block; on a grid that of a whole one."""
    if not isinstance(structure, ndgpa.Grid):
        return int(times.max())
    length = structure.block_shape[structure.time_axis]
    return int(times.min()) // length * length + length - 1


@given(
    st.integers(1, 30), st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.integers(1, 4)
)
def test_a_prefix_does_not_depend_on_the_length_of_the_rest(
    length: int, block: int, cell: int, more: int, k: int
) -> None:
    length += block * cell
    x = torch.randn(1, 1, length + more, 3, dtype=torch.float64)
    short, long = (
        ndgpa.gpa(y, y, y, ndgpa.Sequence(y.shape[2], block, cell), k, causal=True)
        for y in (x[:, :, :length], x)
    )
    torch.testing.assert_close(short, long[:, :, :length], rtol=1e-12, atol=1e-12)


@given(st.data())
def test_partly_later_blocks_are_found_without_comparing_all_pairs(data: Any) -> None:
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    grouped = data.draw(st.booleans())

    def spans(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin = torch.randint(-9, 9, (count,), generator=generator)
        return begin, begin + torch.randint(0, 6, (count,), generator=generator)

    (now, until), (first, last) = (spans(data.draw(st.integers(1, 12))) for _ in range(2))
    groups = [torch.randint(0, 2, (len(x),), generator=generator) for x in (now, first)]
    table = blocks_between(now, until, first, last, *(groups if grouped else (None, None)))
    wanted = (first <= until[:, None]) & (last > now[:, None])
    if grouped:
        wanted &= groups[0][:, None] == groups[1]
    assert rows(table) == [row.nonzero()[:, 0].tolist() for row in wanted]
    assert table.shape[1] == int(wanted.sum(dim=1).max())


@given(st.integers(0, 6), st.integers(1, 4), st.integers(1, 3))
def test_the_newest_cell_of_a_cache_says_what_a_search_finds(
    first: int, block: int, cell: int
) -> None:
    newest = NewestCells(Layout((block,), (cell,), ()), first, torch.device("cpu"))
    keys = ndgpa.Sequence(((first + 1) * cell + 2) * block, block)
    (now, until), (begin, end) = newest.cell_span, keys.block_span
    wanted = (begin <= until[:, None]) & (end > now[:, None])
    assert rows(newest.overlapping(keys)) == [row.nonzero()[:, 0].tolist() for row in wanted]
    past = newest.count_candidates(keys, causal=True)
    assert torch.equal(past, (end <= now[:, None]).sum(dim=1))


@given(draw.clusters(group=True, time=True), st.integers(1, 4))
def test_groups_stay_apart_under_time(clusters: ndgpa.Clusters, k: int) -> None:
    x = torch.randn(1, 1, clusters.num_sites, 3, dtype=torch.float64)
    blocks = ndgpa.select(x, x, clusters, k, causal=True).blocks[0, 0]
    for cell, row in enumerate(rows(blocks)):
        assert set(clusters.group[row].tolist()) <= {int(clusters.cell_group[cell])}


@given(draw.clusters(group=True, time=True), st.data())
def test_numbers_of_spaces_do_not_matter(clusters: ndgpa.Clusters, data: Any) -> None:
    """As large as an int64 can be, negative ones among them; on two structures as on one."""
    huge = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3, unique=True)
    names = torch.tensor(data.draw(huge | st.just([0, 2**62, -(2**62)])))
    tables = clusters.block_of_site, clusters.cell_of_block, clusters.time
    groups = names[clusters.group.unique(return_inverse=True)[1]]
    renamed = ndgpa.Clusters(*tables, groups)
    x = torch.randn(1, 1, clusters.num_sites, 3, dtype=torch.float64)
    few = clusters.group != int(clusters.group[0])  # the keys of some spaces only
    for rule in (ndgpa.TopK(2), ndgpa.TopRatio(0.5), ndgpa.TopP(0.5)):
        for causal in (False, True):
            one, other = (
                ndgpa.select(x, x, space, rule, causal=causal).blocks
                for space in (clusters, renamed)
            )
            assert torch.equal(one, other)
    if few.any() and data.draw(st.booleans()):
        sites = few[clusters.block_of_site]
        blocks = clusters.block_of_site[sites].unique(return_inverse=True)[1]
        seen = groups[few]
        keys = ndgpa.Clusters(blocks, torch.arange(len(seen)), clusters.time[sites], seen)
        kept = ndgpa.select(
            x, x[:, :, sites], renamed, ndgpa.TopRatio(1.0), key_structure=keys, causal=True
        ).blocks[0, 0]
        for cell, row in enumerate(rows(kept)):
            assert set(seen[row].tolist()) <= {int(renamed.cell_group[cell])}


def test_a_space_whose_number_is_huge_reads_its_own_blocks() -> None:
    """By hand: the reported case, spaces 0 and 2**62 of two cells each."""
    site, group = torch.arange(8), torch.tensor([0, 0, 2**62, 2**62])
    space = ndgpa.Clusters(site // 2, torch.arange(4), site, group)
    x = torch.randn(1, 1, 8, 2)
    kept = ndgpa.select(x, x, space, ndgpa.TopRatio(1.0), causal=True).blocks
    assert rows(kept[0, 0]) == [[0], [0, 1], [2], [2, 3]]


def test_a_sequence_by_hand() -> None:
    """Four blocks of two: a cell reads its own in part and the best of those before it."""
    key = torch.tensor([0, 0, 3, 3, 1, 1, 9, 9.0]).view(1, 1, 8, 1)
    blocks = ndgpa.select(torch.ones(1, 1, 8, 1), key, ndgpa.Sequence(8, 2), 1, causal=True).blocks
    assert blocks.tolist() == [[[[0, -1], [0, 1], [1, 2], [1, 3]]]]


def test_frames_of_their_own_blocks_choose_within_their_frame() -> None:
    """Blocks of one frame: nothing is read in part, the width is k."""
    video = ndgpa.Video((3, 4, 4), (1, 2, 2))
    x = torch.randn(1, 2, 48, 4)
    blocks = ndgpa.select(x, x, video, 4, causal=True).blocks
    assert blocks.shape[-1] == 4
    assert torch.equal(blocks[0, 0, 0], torch.arange(4, dtype=torch.int32))


def test_memory_does_not_grow_with_pairs_of_cells_and_blocks() -> None:
    """A quarter of a million cells and blocks: all pairs would be 64 GiB of bools."""
    ones = ndgpa.Sequence(1 << 18, 1)
    pairs = ndgpa.Sequence(1 << 18, 2)
    table = blocks_between(*ones.cell_span, *pairs.block_span)
    assert table.shape == (1 << 18, 1)
    assert torch.equal(table[::2, 0], torch.arange(1 << 17))
    assert bool((table[1::2] == -1).all())


def test_causal_without_time_is_an_error() -> None:
    x = torch.randn(1, 1, 16, 2)
    with pytest.raises(ValueError, match="needs structures with time"):
        ndgpa.select(x, x, ndgpa.Image((4, 4), 2), 2, causal=True)


@given(st.data())
def test_own_blocks_of_another_structure_on_the_same_sites(data: Any) -> None:
    length = data.draw(st.integers(1, 30))
    queries = ndgpa.Sequence(length, 1, data.draw(st.integers(1, length)))
    keys = ndgpa.Sequence(length, data.draw(st.integers(1, length)))
    x = torch.randn(1, 1, length, 2)
    rule = ndgpa.TopK(1, force=ndgpa.Own())
    blocks = rows(ndgpa.select(x, x, queries, rule, key_structure=keys).blocks[0, 0])
    for cell, sites in enumerate(rows(queries.cell_sites)):
        own = set(keys.block_of_site[sites].tolist())
        assert own <= set(blocks[cell])
        assert len(blocks[cell]) == min(len(own) + 1, keys.num_blocks)


def test_own_blocks_need_the_same_sites() -> None:
    x, y = torch.randn(1, 1, 8, 2), torch.randn(1, 1, 6, 2)
    rule = ndgpa.TopK(1, force=ndgpa.Own())
    with pytest.raises(ValueError, match="own blocks need queries and keys on the same sites"):
        ndgpa.select(x, y, ndgpa.Sequence(8, 2), rule, key_structure=ndgpa.Sequence(6, 2))
