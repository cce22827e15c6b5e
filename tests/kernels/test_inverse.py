"""The sorted inverse table against a loop, and hot blocks."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ndgpa import Grid
from ndgpa.attention.triton.inverse import inverse
from tests.kernels.kernel_problems import attention, reference, triton

BACKWARD = "ndgpa.attention.triton.backward_keys"


@settings(max_examples=20 * settings().max_examples)
@given(st.data())
def test_every_reader_stands_in_one_segment_of_its_block(data):
    key_heads, tiles = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    shared = data.draw(st.booleans())
    heads = 1 if shared else key_heads * tiles
    cells, slots, num_blocks = (data.draw(st.integers(1, m)) for m in (6, 4, 5))
    longest = data.draw(st.integers(1, 5))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    blocks = torch.randint(-1, num_blocks, (2, heads, cells, slots), generator=g).int()
    bias = torch.randn(blocks.shape, generator=g)
    table = inverse(blocks, bias, num_blocks, key_heads, longest)
    table_heads = min(heads, key_heads)
    for row in range(2 * table_heads):
        wanted = defaultdict(list)
        of_row = blocks[row // table_heads].unflatten(0, (table_heads, -1))[row % table_heads]
        bias_of_row = bias[row // table_heads].unflatten(0, (table_heads, -1))[row % table_heads]
        for (t, c, k), block in zip(_places(of_row), of_row.flatten().tolist()):
            wanted[block].append((t * cells + c, bias_of_row[t, c, k].item()))
        found, parts = defaultdict(list), defaultdict(list)
        for block, first, end, part in table.segments[row].tolist():
            if block >= 0:
                assert end - first <= longest
                readers = table.cells[row, first:end]
                if table.heads is not None:
                    readers = readers + table.heads[row, first:end] * cells
                readers = readers.tolist()
                found[block] += list(zip(readers, table.biases[row, first:end].tolist()))
                parts[block].append(part)
        assert sorted(found) == list(range(num_blocks))
        hot = {b: list(range(i, j)) for b, i, j in table.hot[row].tolist() if b >= 0}
        for block in range(num_blocks):
            assert found[block] == wanted[block]
            assert parts[block] == hot.get(block, [-1])
        assert all(part < table.parts for some in hot.values() for part in some)


def _places(x):
    return [tuple(i.tolist()) for i in torch.ones_like(x).nonzero()]


@pytest.mark.parametrize("selection_heads", [1, pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("longest", [1, 3, 1000])
def test_a_block_that_everyone_reads_is_summed_in_order(longest, selection_heads, monkeypatch):
    monkeypatch.setattr(f"{BACKWARD}.longest_segment", lambda *_: longest)
    problem = attention(
        Grid((10,), 2, 1), heads=4, key_heads=2, selection_heads=selection_heads, slots=2,
        biased=True, keyed=True, width=6, value_width=4,
    )  # fmt: skip
    problem.blocks[..., 0] = 3
    exact = problem.solve(reference, torch.float64)
    ours, again = (problem.solve(triton, torch.float32) for _ in range(2))
    for name, x in exact.items():
        assert torch.allclose(ours[name].double(), x, atol=2e-5), name
        assert torch.equal(ours[name], again[name])
