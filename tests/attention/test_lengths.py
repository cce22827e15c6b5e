"""Rows of different length: the torch backend looks at the slots that are filled."""

from typing import Any

import torch
from hypothesis import given, strategies as st

import ndgpa
from ndgpa.attention.cells import Cells
from ndgpa.attention.chunks import BUDGET
from ndgpa.testing import draw


@given(st.data())
def test_rows_of_any_length_agree_with_the_reference(data: Any) -> None:
    """Forward, gradients of all inputs, the bias of each slot among them; empty slots anywhere."""
    problem = data.draw(draw.problems())
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    shape = (problem.query.shape[0], 1, problem.structure.num_cells, 12)
    blocks = torch.randint(0, problem.key_structure.num_blocks, shape, generator=generator).int()
    lengths = torch.randint(0, 13, shape[:3], generator=generator) // 3
    blocks = blocks.masked_fill(torch.arange(12) >= lengths[..., None], -1)
    blocks = blocks.masked_fill(torch.rand(shape, generator=generator) < 0.1, -1)
    results = []
    for backend in ("torch", "reference"):
        bias = torch.linspace(-1, 1, 12, dtype=torch.float64).expand(shape).clone()
        inputs = [x.clone().requires_grad_() for x in (*problem.inputs, bias)]
        out = ndgpa.attend(
            *inputs[:3],
            ndgpa.Selection(blocks, inputs[3]),
            problem.structure,
            backend=backend,
            **problem.options,
        )
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_a_chunk_is_no_wider_than_its_longest_row(monkeypatch: Any) -> None:
    """Slots looked at are counted: 1 row of 64 and 63 of 1 cost about 127, not 64 times 64."""
    monkeypatch.setitem(BUDGET, "cpu", 1)
    looked_at: list[int] = []
    tile = Cells.tile

    def counted(self: Any, chunk: Any) -> Any:
        looked_at.append(chunk.slots)
        return tile(self, chunk)

    monkeypatch.setattr(Cells, "tile", counted)
    blocks = torch.full((1, 1, 64, 64), -1, dtype=torch.int32)
    blocks[..., 0] = 3
    blocks[0, 0, 17] = torch.arange(64)
    x = torch.randn(1, 1, 128, 4)
    ndgpa.attend(x, x, x, ndgpa.Selection(blocks), ndgpa.Sequence(128, 2))
    assert sorted(looked_at) == [1] * 63 + [64]


def test_what_later_cells_read_does_not_change_a_bit_of_earlier_ones() -> None:
    """However many slots they fill, and so whichever cells are computed together."""
    space = ndgpa.Sequence(64, 2)
    for seed in range(20):
        torch.manual_seed(seed)
        x = 8 * torch.randn(1, 1, 64, 5)
        outs = []
        for later in (1, 6, 13, 32):
            blocks = torch.full((1, 1, 32, 32), -1, dtype=torch.int32)
            blocks[..., :16, :5] = torch.arange(5)
            blocks[..., 16:, :later] = torch.arange(later)
            selection = ndgpa.Selection(blocks)
            out = ndgpa.attend(x, x, x, selection, space, causal=True, backend="torch")
            outs.append(out[:, :, :32])
        assert all(torch.equal(outs[0], out) for out in outs[1:])
