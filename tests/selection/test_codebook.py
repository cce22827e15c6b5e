"""Selection by quantized keys, against loops over numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import CausalContract, RuleContract, draw
from ndgpa.testing.oracle import logit, most_relevant, rows, softmax, voters_of

CODES = st.sampled_from([1, 3, 5, 100])
SHARES = st.sampled_from(["head", "group", "all"])


class TestCodebook(RuleContract, CausalContract):
    def rules(self, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        force = st.sampled_from([None, ndgpa.Fixed((0,))])
        return st.builds(ndgpa.Codebook, st.integers(1, 4), CODES, share=SHARES, force=force)


@given(st.data())
def test_the_blocks_with_the_most_attention_to_quantized_keys_are_read(data: Any) -> None:
    spaces = draw.structures() | draw.clusters(time=False, group=True)
    problem = data.draw(draw.problems(spaces=spaces, max_batch=1))
    causal = None not in (problem.structure.time, problem.key_structure.time)
    causal = causal and data.draw(st.booleans())
    rule = ndgpa.Codebook(data.draw(st.integers(1, 4)), data.draw(CODES), data.draw(SHARES))
    given_ = problem.query, problem.key, problem.structure
    found = ndgpa.select(*given_, rule, causal=causal, **problem.options).blocks
    partly = [[] for _ in range(problem.structure.num_cells)]
    if causal:
        partly = rows(problem.structure.overlapping(problem.key_structure))
    for s in range(found.shape[1]):
        for cell, blocks in enumerate(rows(found[0, s])):
            scores = relevance(problem, s, found.shape[1], cell, rule.codes, causal)
            assert blocks == sorted({*most_relevant(scores, rule.k), *partly[cell]})


def relevance(
    problem: draw.Problem, s: int, sharers: int, cell: int, count: int, causal: bool
) -> np.ndarray:
    """Of each key block for a cell, NaN for one it cannot choose; rounded so that equals tie."""
    space, keys, heads = problem.structure, problem.key_structure, problem.query.shape[1]
    mask = None if problem.key_mask is None else problem.key_mask[0]
    seen = [True] * keys.num_sites if mask is None else mask.tolist()
    voters = voters_of(space, keys, mask)
    asking = [x for block in rows(space.cells)[cell] for x in rows(space.blocks)[block]]
    asking = [x for x in asking if voters[x]]
    key_space = [0] * keys.num_blocks
    own_space = 0
    if space.cell_group is not None and keys.group is not None:
        key_space, own_space = keys.group.tolist(), int(space.cell_group[cell])
    listed = [
        (y, j)
        for j, block in enumerate(rows(keys.blocks))
        for y in block
        if seen[y] and key_space[j] == own_space
    ]
    time = [0] * keys.num_sites
    choice = {j for _, j in listed}
    if causal:
        assert space.time is not None
        assert keys.time is not None
        time, now = keys.time.tolist(), int(space.cell_span[0][cell])
        listed.sort(key=lambda pair: time[pair[0]])
        asking = [x for x in asking if int(space.time[x]) == now]
        choice = {j for j in choice if max(time[y] for y in rows(keys.blocks)[j]) <= now}
    codes = [y for y, _ in spread(listed, count)]
    total = np.full(keys.num_blocks, np.nan)
    total[[*choice]] = 0
    for h in range(s * heads // sharers, (s + 1) * heads // sharers):
        query = problem.query[0, h].numpy()
        key = problem.key[0, h * problem.key.shape[1] // heads].numpy()
        words = []
        for y, j in listed:
            past = [c for c in codes if time[c] <= time[y]]
            if j in choice and past:
                words.append((j, min(past, key=lambda c: ((key[y] - key[c]) ** 2).sum().round(12))))
        for x in asking if words else []:
            logits = [
                logit(query[x], key[c], problem.logit_scale, problem.affinity) for _, c in words
            ]
            for (j, _), share in zip(words, softmax(logits)):
                total[j] += share
    return total.round(12)


def spread(listed: list[Any], count: int) -> list[Any]:
    """As many of a list, by steps of the golden ratio."""
    if len(listed) <= count:
        return listed
    golden = (math.sqrt(5) - 1) / 2
    return [listed[int(i * golden % 1 * len(listed))] for i in range(count)]


@given(st.data())
def test_with_as_many_codes_as_keys_the_best_blocks_are_found(data: Any) -> None:
    """The attention of a dense matrix, summed over the blocks."""
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    query, key = (3 * torch.randn(1, 1, 60, 4, generator=generator).double() for _ in range(2))
    space = ndgpa.Sequence(60, 5, 2)
    mass = (query @ key.mT / 2).softmax(dim=-1)[0, 0]
    best = mass.view(6, 10, 12, 5).sum(dim=(1, 3)).topk(3, dim=1).indices.sort(dim=1).values
    found = ndgpa.select(query, key, space, ndgpa.Codebook(3, codes=60)).blocks
    assert torch.equal(found[0, 0].long(), best)


def test_blocks_whose_sites_differ_are_found() -> None:
    """Blocks 1 and 3 have the same mean; only one has the keys that the queries look for."""
    space = ndgpa.Sequence(16, 4)
    key = torch.tensor([0, 0, 0, 0, -4, 4, -4, 4, 1, 1, 1, 1, 0, 0, 0, 0.0])
    query = torch.full((1, 1, 16, 1), 3.0)
    by_means, by_codes = (
        ndgpa.select(query, key.view(1, 1, 16, 1), space, rule).blocks.unique().tolist()
        for rule in (ndgpa.TopK(1), ndgpa.Codebook(1, 8))
    )
    assert by_means == [2]
    assert by_codes == [1]


@pytest.mark.parametrize("codes", [1, 4, 64])
def test_equals_go_to_the_lowest_id(codes: int) -> None:
    x = torch.ones(1, 1, 32, 3)
    kept = ndgpa.select(x, x, ndgpa.Sequence(32, 4, 2), ndgpa.Codebook(2, codes)).blocks
    assert kept.tolist() == [[4 * [[0, 1]]]]


def test_spaces_do_not_see_each_other() -> None:
    parts = [ndgpa.Sequence(40, 4, 2), ndgpa.Sequence(24, 4, 2)]
    both, rule = ndgpa.disjoint(parts), ndgpa.Codebook(3, 8)
    x = torch.randn(1, 1, 64, 4, generator=draw.seeded(0))
    found = ndgpa.select(x, x, both, rule).blocks[0, 0]
    for part, own, first, cells in zip(parts, x.split([40, 24], dim=2), (0, 10), (0, 5)):
        alone = ndgpa.select(own, own, part, rule).blocks[0, 0]
        assert torch.equal(found[cells : cells + len(alone)], alone + first)


def test_a_mapped_axis_is_one_more_batch() -> None:
    x = torch.randn(3, 2, 2, 32, 4, generator=draw.seeded(0))
    space, rule = ndgpa.Sequence(32, 4, 2), ndgpa.Codebook(2, 8, "group")

    def select(query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ndgpa.select(query, query, space, rule, key_mask=mask, causal=True).blocks

    mask = torch.rand(3, 2, 32, generator=draw.seeded(1)) < 0.6
    expected = torch.stack([select(*each) for each in zip(x, mask)])
    assert torch.equal(torch.vmap(select)(x, mask), expected)


@pytest.mark.bad_input
def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        ndgpa.Codebook(0)
    with pytest.raises(ValueError, match="codes must be at least 1"):
        ndgpa.Codebook(3, 0)
    with pytest.raises(ValueError, match="share"):
        ndgpa.Codebook(3, share="none")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="force must be a rule"):
        ndgpa.Codebook(3, force=12)  # type: ignore[arg-type]
