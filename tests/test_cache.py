"""Decoding with a cache gives what a causal prefill of the whole sequence gives."""

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import ndgpa
from ndgpa.selection import Rule
from tests.draw import FEW, seeded

RULES = [
    ndgpa.TopK(2),
    ndgpa.TopK(1, relevance="logit", share="group", force=(0,)),
    ndgpa.TopP(0.6, share="all"),
    ndgpa.TopRatio(0.4) | ndgpa.Fixed((0,)),
    ndgpa.SoftTopK(2),
    ndgpa.MultiLevel((2, 2)),
    ndgpa.PerHead((ndgpa.TopK(1), ndgpa.TopK(1), ndgpa.TopK(2), ndgpa.TopK(2))),
    ndgpa.PerHead((ndgpa.TopK(1), ndgpa.TopK(2), ndgpa.TopK(1), ndgpa.TopK(1))),
]


@example(ndgpa.MultiLevel((2, 2)), 1, 1, [1, 1, 2], "dot", 0)  # ends within a node
@example(RULES[-2], 1, 1, [5, 3], "dot", 0)  # the heads of a rule share one key head
@example(RULES[-1], 2, 2, [9, 9, 2], "dot", 0)  # and share none
@given(
    st.sampled_from(RULES),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.sampled_from([1, 1, 1, 2, 5, 9]), min_size=1, max_size=12),
    st.sampled_from(["dot", "euclidean"]),
    st.integers(0, 2**20),
)
@FEW
def test_decoding_equals_prefill(
    rule: Rule, downsample: int, cell: int, pieces: list[int], affinity: str, seed: int
) -> None:
    """Any pieces, cells of one site and pooled ones, heads that share keys."""
    generator = seeded(seed)
    pieces = [max(pieces[0], 2 * downsample * cell), *pieces[1:]]
    length = sum(pieces)
    query, key, value = (
        torch.randn(2, heads, length, d, generator=generator, dtype=torch.float64)
        for heads, d in ((4, 3), (2, 3), (2, 5))
    )
    cache = ndgpa.Cache(downsample, cell, rule, affinity=affinity)
    outs = []
    for q, k, v in zip(*(x.split(pieces, dim=2) for x in (query, key, value))):
        cache.append(k, v)
        outs.append(cache.attend(q))
    whole = ndgpa.Sequence(length, downsample, cell)
    expected = ndgpa.gpa(query, key, value, whole, rule, causal=True, affinity=affinity)
    torch.testing.assert_close(torch.cat(outs, dim=2), expected, rtol=1e-11, atol=1e-11)
    assert cache.length == length


def test_one_site_at_a_time_from_nothing() -> None:
    query, key, value = torch.randn(3, 1, 1, 20, 4, dtype=torch.float64)
    cache = ndgpa.Cache(3, 2, 2)
    outs = []
    for t in range(20):
        cache.append(key[:, :, t, None], value[:, :, t, None])
        outs.append(cache.attend(query[:, :, t, None]))
    expected = ndgpa.gpa(query, key, value, ndgpa.Sequence(20, 3, 2), 2, causal=True)
    torch.testing.assert_close(torch.cat(outs, dim=2), expected)


def test_no_sites_may_be_appended_first() -> None:
    x = torch.randn(2, 3, 5, 4)
    cache = ndgpa.Cache(2, 1, 2)
    cache.append(x[:, :, :0], x[:, :, :0])
    cache.append(x, x)
    assert torch.equal(cache.attend(x), ndgpa.gpa(x, x, x, ndgpa.Sequence(5, 2), 2, causal=True))


def test_room_grows_by_doubling() -> None:
    """Memory is at most twice what is held, and is copied a logarithmic number of times."""
    cache, places = ndgpa.Cache(4, 1, 2), set()
    for _ in range(200):
        x = torch.randn(1, 1, 1, 2)
        cache.append(x, x)
        places.add(cache._key.data_ptr())
    assert cache._key.shape[2] <= 2 * 200
    assert len(places) <= 8


@pytest.mark.bad_input
def test_misuse_is_named() -> None:
    x = torch.randn(1, 2, 6, 4)
    cache = ndgpa.Cache(2, 1, 2)
    cache.append(x, x)
    with pytest.raises(ValueError, match="query has 5 sites but 6 were appended"):
        cache.attend(x[:, :, :5])
    cache.attend(x)
    with pytest.raises(ValueError, match="append keys and values first"):
        cache.attend(x)
    wrong: list[tuple[Any, str]] = [
        (x[:, :1], "key must match the cache"),
        (x.double(), "key must match the cache"),
    ]
    for y, match in wrong:
        with pytest.raises(ValueError, match=match):
            cache.append(y, y)
    with pytest.raises(ValueError, match="downsample must be at least 1"):
        ndgpa.Cache(0, 1, 2)
    with pytest.raises(TypeError, match="rule must be a Rule or an int; got str"):
        ndgpa.Cache(2, 1, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown affinity"):
        ndgpa.Cache(2, 1, 2, affinity="cosine")


@pytest.mark.bad_input
def test_a_query_that_is_refused_may_be_given_again() -> None:
    x = torch.randn(1, 2, 6, 4)
    cache = ndgpa.Cache(2, 1, 2)
    cache.append(x, x)
    with pytest.raises(ValueError, match="query has 3 features per head but key has 4"):
        cache.attend(x[..., :3])
    with pytest.raises(ValueError, match="query has 3 heads, which is not a multiple of key's 2"):
        cache.attend(torch.randn(1, 3, 6, 4))
    assert cache.attend(x).shape == x.shape
