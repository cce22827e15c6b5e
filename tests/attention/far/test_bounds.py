"""How far a far field is from full attention, and which blocks a bundle holds."""

import math
from typing import Any

import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa import Bundles
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.testing import draw
from ndgpa.testing.oracle import full_attention, rows
from tests.attention.far.dense import bundles


@given(st.data())
def test_the_error_keeps_to_its_bound(data: Any) -> None:
    """docs/far_field.md: D tanh(w^2 / 32) + 2 m R tanh(w / 4)."""
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    space = data.draw(draw.clusters(time=False))
    n, size = space.num_sites, data.draw(st.sampled_from([0.1, 1.0, 3.0]))
    query, key, value = size * torch.randn(3, 1, 1, n, 3, generator=generator).double()
    blocks = torch.randint(-1, space.num_blocks, (1, 1, space.num_cells, 1), generator=generator)
    out = ndgpa.attend(query, key, value, ndgpa.Selection(blocks.int()), space, far="site")
    exact = full_attention(query, key, value, 3**-0.5, "dot", None)
    errors = (out - exact)[0, 0].norm(dim=1).tolist()
    logits = 3**-0.5 * query[0, 0] @ key[0, 0].mT
    members = [torch.tensor(block) for block in rows(space.blocks)]
    radius = [(value[0, 0, m] - value[0, 0, m].mean(0)).norm(dim=1).max().item() for m in members]
    diameter = torch.cdist(value[0, 0], value[0, 0]).max().item()
    for x, cell in enumerate(space.cell_of_site.tolist()):
        far = [j for j in range(len(members)) if j != int(blocks[0, 0, cell, 0])]
        if not far:
            continue
        width = max(float(logits[x, members[j]].max() - logits[x, members[j]].min()) for j in far)
        mass = sum(float(logits[x].softmax(0)[members[j]].sum()) for j in far)
        within = 2 * mass * max(radius[j] for j in far) * math.tanh(width / 4)
        assert errors[x] <= diameter * math.tanh(width**2 / 32) + within + 1e-12


@given(st.data())
def test_a_bundle_keeps_to_its_bound(data: Any) -> None:
    """docs/far_field.md: at most u^2 / 8 below the log-sum-exp of its blocks."""
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    space = data.draw(draw.clusters(time=False))
    query, key = 2 * torch.randn(2, 1, 1, space.num_sites, 3, generator=generator).double()
    nothing = ndgpa.Selection(torch.empty(1, 1, space.num_cells, 0, dtype=torch.int32))
    bundle, exact = (
        ndgpa.attend(query, key, key, nothing, space, far=far, return_lse=True)[1][0, 0]
        for far in (Bundles(1), "site")
    )
    logits = 3**-0.5 * query[0, 0] @ space.downsample(key)[0, 0].mT
    width = logits.amax(dim=1) - logits.amin(dim=1)
    assert bool((exact - bundle <= width**2 / 8 + 1e-12).all())


@given(st.data())
def test_a_bundle_is_what_is_nearest_to_a_landmark(data: Any) -> None:
    """Of several spaces in one, with blocks of which nothing is seen; causal, of the past alone."""
    space = data.draw(draw.clusters(time=data.draw(st.booleans()), group=True))
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    key = torch.randn(space.num_sites, 3, generator=generator).double()
    seen = torch.rand(space.num_sites, generator=generator) < 0.8
    count = data.draw(st.integers(2, 4))
    sites = [[x for x in block if seen[x]] for block in rows(space.blocks)]
    assert space.group is not None
    latest = None if space.time is None else space.block_span[1]
    expected = bundles(
        key, sites, None if latest is None else latest.tolist(), space.group.tolist(), count
    )
    means = torch.stack([key[own].sum(dim=0) / max(1, len(own)) for own in sites])
    exists = torch.tensor([bool(own) for own in sites])
    found = bundle_blocks(means[None, None], exists[None, None], latest, space.group, count)
    assert found[0, 0][exists].tolist() == [g for g, own in zip(expected, sites) if own]
