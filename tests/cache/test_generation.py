"""What generation does to a cache: padded prompts, beams, drafts that are dropped, frames."""

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.testing.draw import FEW, seeded


@st.composite
def sequences(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """Queries, keys and values, a mask of left padding, a block and a cell."""
    generator = seeded(draw(st.integers(0, 2**20)))
    block, cell = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    length = draw(st.integers(2 * block * cell, 40))
    query, key, value = (
        torch.randn(2, heads, length, d, generator=generator, dtype=torch.float64)
        for heads, d in ((4, 3), (2, 3), (2, 5))
    )
    padding = torch.tensor([draw(st.integers(0, length // 2)), 0])
    return query, key, value, torch.arange(length) >= padding[:, None], block, cell


@given(sequences(), st.sampled_from(["dot", "euclidean"]), st.data())
@FEW
def test_padding_on_the_left_does_not_exist(given_: Any, affinity: str, data: Any) -> None:
    """The prompt's mask, then steps without one; NaN in the padding is never read."""
    query, key, value, mask, block, cell = given_
    length = query.shape[2]
    prompt = data.draw(st.integers(length // 2, length))
    pieces = [prompt, *[1] * (length - prompt)]
    spoilt = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (key, value)]
    cache, outs = ndgpa.Cache(block, cell, 2, affinity=affinity), []
    for q, k, v, m in zip(
        *(x.split(pieces, dim=2) for x in (query, *spoilt)), mask.split(pieces, dim=1)
    ):
        cache.append(k, v, key_mask=None if m.all() and outs else m)
        outs.append(cache.attend(q))
    expected = ndgpa.gpa(
        query,
        key,
        value,
        ndgpa.Sequence(length, block, cell),
        2,
        causal=True,
        affinity=affinity,
        key_mask=mask,
    )
    torch.testing.assert_close(torch.cat(outs, dim=2), expected, rtol=1e-11, atol=1e-11)


@given(sequences(), st.data())
@FEW
def test_beams_and_dropped_drafts_leave_what_was_kept(given_: Any, data: Any) -> None:
    """Swap the batch and forget some sites, then go on: as if they had never been."""
    query, key, value, mask, block, cell = given_
    length = query.shape[2]
    draft, kept = data.draw(st.integers(1, length)), data.draw(st.integers(0, length))
    kept = min(kept, draft)
    order = torch.tensor(data.draw(st.sampled_from([[1, 0], [0, 0], [1, 1, 0]])))
    cache = ndgpa.Cache(block, cell, 2)
    noise = [torch.randn_like(x[:, :, :draft]) for x in (query, key, value)]
    for x, y in zip(noise, (query, key, value)):
        x[:, :, :kept] = y[:, :, :kept]
    cache.append(*noise[1:], key_mask=mask[:, :draft])
    cache.attend(noise[0])
    cache.crop(kept)
    assert cache.length == kept
    cache.reorder(order)
    query, key, value, mask = (x[order] for x in (query, key, value, mask))
    outs = []
    for site in range(kept, length):
        new = slice(site, site + 1)
        cache.append(key[:, :, new], value[:, :, new], key_mask=mask[:, new])
        outs.append(cache.attend(query[:, :, new]))
    whole = ndgpa.gpa(
        query,
        key,
        value,
        ndgpa.Sequence(length, min(block, length), cell),
        2,
        causal=True,
        key_mask=mask,
    )
    if outs:
        torch.testing.assert_close(torch.cat(outs, dim=2), whole[:, :, kept:])


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.integers(0, 2**20),
)
@FEW
def test_frames_are_appended_to_a_video(
    block: tuple[int, ...], cell: tuple[int, ...], pieces: list[int], seed: int
) -> None:
    """Frames that blocks need not divide; prompts of several frames and single ones."""
    frame = (4, 5)
    blocks = [-(-size // b) for size, b in zip(frame, block[1:])]
    cell = (cell[0], *(min(c, n) for c, n in zip(cell[1:], blocks)))
    generator = seeded(seed)
    pieces = [max(pieces[0], 2 * block[0] * cell[0]), *pieces[1:]]
    sites = sum(pieces) * 20
    query, key, value = (
        torch.randn(1, heads, sites, d, generator=generator, dtype=torch.float64)
        for heads, d in ((2, 3), (1, 3), (1, 2))
    )
    cache, outs = ndgpa.Cache(block, cell, 2, frame=frame), []
    for q, k, v in zip(*(x.split([20 * p for p in pieces], dim=2) for x in (query, key, value))):
        cache.append(k, v)
        outs.append(cache.attend(q))
    video = ndgpa.Video((sum(pieces), *frame), block, cell)
    expected = ndgpa.gpa(query, key, value, video, 2, causal=True)
    torch.testing.assert_close(torch.cat(outs, dim=2), expected, rtol=1e-11, atol=1e-11)


def test_a_layer_decodes_as_it_attends() -> None:
    layer = ndgpa.nn.SpatialAttention(16, 4, key_heads=2, operator=ndgpa.GPA(3, causal=True))
    x = torch.randn(2, 40, 16)
    mask = torch.arange(40) >= torch.tensor([[0], [9]])
    cache = ndgpa.Cache(4, 2, 3)
    parts = [layer.decode(x[:, :25], cache, key_mask=mask[:, :25])]
    parts += [layer.decode(x[:, site, None], cache) for site in range(25, 40)]
    whole = layer(x, ndgpa.Sequence(40, 4, 2), key_mask=mask)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.bad_input
def test_misuse_is_named() -> None:
    x = torch.randn(1, 1, 12, 4)
    cache = ndgpa.Cache((2, 2), 1, 2, frame=4)
    cache.append(x, x)
    for error, text, call in (
        (ValueError, "length must be from 0 to the 12 sites", lambda: cache.crop(13)),
        (ValueError, "length 3 is no whole number of frames of 4", lambda: cache.crop(3)),
        (TypeError, "length must be an int; got 1.5", lambda: cache.crop(1.5)),
        (
            ValueError,
            "key has 3 sites, which are no whole frames of 4",
            lambda: cache.append(x[:, :, :3], x[:, :, :3]),
        ),
        (
            TypeError,
            "key_mask must be a bool tensor",
            lambda: cache.append(x, x, key_mask=torch.ones(1, 12)),
        ),
        (
            ValueError,
            "block has 2 entries but time and frame have 1 axes",
            lambda: ndgpa.Cache((2, 2), 1, 2),
        ),
        (
            ValueError,
            "block 5 is larger than axis 1",
            lambda: ndgpa.Cache((2, 5), 1, 2, frame=4),
        ),
    ):
        with pytest.raises(error, match=text):
            call()
