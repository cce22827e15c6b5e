"""Decoding with a cache gives what a causal prefill of the whole sequence gives."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing.draw import FEW, seeded

RULES = [
    ndgpa.TopK(2),
    ndgpa.TopK(1, relevance="logit", share="group", force=ndgpa.Fixed((0,))),
    ndgpa.TopP(0.6, share="all"),
    ndgpa.TopRatio(0.4) | ndgpa.Fixed((0,)),
    ndgpa.SoftTopK(2),
    ndgpa.MultiLevel((2, 2)),
    ndgpa.Refine(ndgpa.TopK(4), 2),
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
    rule: Rule, block: int, cell: int, pieces: list[int], affinity: str, seed: int
) -> None:
    """Any pieces, cells of one site and pooled ones, heads that share keys."""
    generator = seeded(seed)
    pieces = [max(pieces[0], 2 * block * cell), *pieces[1:]]
    length = sum(pieces)
    query, key, value = (
        torch.randn(2, heads, length, d, generator=generator, dtype=torch.float64)
        for heads, d in ((4, 3), (2, 3), (2, 5))
    )
    cache = ndgpa.Cache(block, cell, rule, affinity=affinity)
    outs = []
    for q, k, v in zip(*(x.split(pieces, dim=2) for x in (query, key, value))):
        cache.append(k, v)
        outs.append(cache.attend(q))
    whole = ndgpa.Sequence(length, block, cell)
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


def test_a_cell_that_the_prompt_began_keeps_what_its_first_site_selects() -> None:
    """Site 4 wants block 0; sites 5 and 6, of its cell, want block 1, which it did not select."""
    query, key = torch.zeros(2, 1, 1, 7, 2, dtype=torch.float64)
    query[..., 4, 0] = query[..., 5, 1] = query[..., 6, 1] = 1
    key[..., :2, 0] = key[..., 2:4, 1] = 10
    value = torch.eye(7, dtype=torch.float64)[None, None]
    cache = ndgpa.Cache(2, 2, 1, scale=1.0)
    cache.append(key[:, :, :6], value[:, :, :6])
    cache.attend(query[:, :, :6])
    cache.append(key[:, :, 6:], value[:, :, 6:])
    expected = torch.tensor([[[[1, 1, 0, 0, 1, 1, 1]]]], dtype=torch.float64) / 5
    torch.testing.assert_close(cache.attend(query[:, :, 6:]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_in_16_bits_errs_as_a_prefill_does(dtype: torch.dtype) -> None:
    """At most twice as much as 16 bits do in one call, against float64."""
    exact = torch.randn(3, 1, 2, 64, 8).to(dtype).double()
    space, rule = ndgpa.Sequence(64, 4), ndgpa.Fixed((0, 2))
    truth = ndgpa.gpa(*exact, space, rule, causal=True)
    prefill = ndgpa.gpa(*exact.to(dtype), space, rule, causal=True)
    decoded = torch.cat(list(_decode(ndgpa.Cache(4, 1, rule), *exact.to(dtype), 12)), dim=2)
    assert decoded.dtype == dtype
    assert (decoded - truth).norm() <= 2 * (prefill - truth).norm()


def test_under_autocast_the_output_is_of_its_dtype() -> None:
    x = torch.randn(3, 1, 2, 40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = torch.cat(list(_decode(ndgpa.Cache(4, 1, 2), *x, 12)), dim=2)
        prefill = ndgpa.gpa(*x, ndgpa.Sequence(40, 4), 2, causal=True)
    assert decoded.dtype == prefill.dtype == torch.bfloat16
    torch.testing.assert_close(decoded, prefill, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_those_that_read_it_and_come_later(bad: float) -> None:
    """Site 13, of block 3."""
    x = torch.randn(3, 1, 1, 24, 4)
    spoilt = x.clone()
    spoilt[1, ..., 13, :], spoilt[2, ..., 13, :] = torch.nan, bad
    for block, lost in ((1, 24), (3, 13)):
        clean, ours = (
            torch.cat(list(_decode(ndgpa.Cache(4, 1, ndgpa.Fixed((0, block))), *y, 13)), dim=2)
            for y in (x, spoilt)
        )
        assert torch.equal(ours[:, :, :lost], clean[:, :, :lost])
        assert ours[:, :, lost:].isnan().all()


@pytest.mark.parametrize("affinity", ["dot", "euclidean"])
def test_a_step_passes_over_no_more_than_its_cell_reads(affinity: str) -> None:
    """Nothing as long as the sequence is computed with; rows of it are gathered."""
    cache, x = ndgpa.Cache(4, 4, 2, affinity=affinity), torch.randn(1, 1, 2005, 8)
    list(_decode(cache, x, x, x, 2000))
    with torch.profiler.profile(record_shapes=True) as profile:
        list(_decode(cache, *[x[:, :, :1]] * 3, 1))
    passes = {
        event.key
        for event in profile.key_averages(group_by_input_shape=True)
        if event.key.startswith("aten::") and not event.key.startswith(_NO_PASS)
        for shape in event.input_shapes
        if math.prod(shape) >= 1990
    }
    assert not passes


# Views, and gathers, whose cost is that of what they return.
_NO_PASS = (
    *("aten::index", "aten::select", "aten::slice", "aten::new_empty"),
    *("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::_reshape_alias"),
    *("aten::as_strided", "aten::expand", "aten::flatten", "aten::unflatten"),
    *("aten::unsqueeze", "aten::squeeze", "aten::permute", "aten::transpose"),
)


@pytest.mark.compiled
@pytest.mark.parametrize("affinity", ["dot", pytest.param("euclidean", marks=pytest.mark.slow)])
def test_a_step_compiles_as_one_graph(affinity: str) -> None:
    """Within a cell, at the beginning of one, and where the room grows; not one graph a step."""
    compiled, eager = (ndgpa.Cache(4, 2, 2, affinity=affinity) for _ in range(2))
    inputs = torch.randn(3, 1, 2, 56, 8)
    for cache in (compiled, eager):
        next(_decode(cache, *inputs[..., :44, :], 44))

    def step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        compiled.append(key, value)
        return compiled.attend(query)

    graphs = 0

    def counted(graph: Any, given: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    run = torch.compile(step, fullgraph=True, backend=counted)
    for x in inputs[..., 44:, :].split(1, dim=3):
        eager.append(*x[1:])
        torch.testing.assert_close(run(*x), eager.attend(x[0]))
    assert graphs <= 5


def _decode(
    cache: ndgpa.Cache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prompt: int,
) -> Iterator[torch.Tensor]:
    """The output of the prompt, then of one site after another."""
    pieces = [prompt, *[1] * (query.shape[2] - prompt)]
    for q, k, v in zip(*(x.split(pieces, dim=2) for x in (query, key, value))):
        cache.append(k, v)
        yield cache.attend(q)


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
    with pytest.raises(ValueError, match="block must be at least 1"):
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
