"""No program writes what another one reads or writes, and none leaves its tensors: all kernels."""

import pytest
import torch
import triton
import triton.language as tl

import ndgpa
from ndgpa import Clusters, Grid, Image
from ndgpa.selection import select_blocks
from ndgpa.structures import Halo, means
from tests.kernels.kernel_problems import attention, triton as kernels
from tests.kernels.memory import watched

BACKWARD = "ndgpa.attention.triton.backward_keys"
SITES = torch.arange(23)
RAGGED = Clusters(7 * SITES % 23 // 4, torch.tensor([0, 1, 0, 2, 1, 0]), time=SITES)
PROBLEMS = {
    "even": attention(Image((4, 8), 2, (1, 2)), full=True, heads=2, key_heads=2),
    "ragged, every option": attention(
        RAGGED, batch=2, heads=4, key_heads=2, selection_heads=2, biased=True, keyed=True,
        causal=True, width=20, value_width=12,
    ),
    "a selection for each head": attention(
        Image((5, 4), 2, 2), heads=2, selection_heads=2, biased=True
    ),
    "small cells": attention(Grid((11,), 2, 1), batch=2, biased=True, slots=5),
    "blocks of several tiles": attention(Grid((150,), 70, 1), heads=1, biased=True, slots=2),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_attention_keeps_to_its_own_memory(name, monkeypatch):
    monkeypatch.setattr(f"{BACKWARD}.longest_segment", lambda *_: 2)  # hot blocks
    with watched() as watch:
        PROBLEMS[name].solve(kernels, torch.float16)
    assert watch.kernels == {"forward", "query_major", "key_major", "add_parts"}
    assert not watch.faults


def test_sums_over_places_keep_to_their_own_memory():
    space = Grid((6, 9), 3, 2)
    problem = attention(space, slots=3, keyed=True).reading(Halo(1).sites(space))
    with watched() as watch:
        problem.solve(kernels, torch.float32)
    assert "add_places" in watch.kernels
    assert not watch.faults


@pytest.mark.parametrize("relevance", ["mass", "logit"])
def test_selection_keeps_to_its_own_memory(relevance, monkeypatch):
    for module in (select_blocks, means):
        monkeypatch.setattr(module, "has_triton", lambda _: True)
    x = torch.randn(2, 2, 23, 12, generator=torch.Generator().manual_seed(0))
    key_mask = torch.arange(23)[None] % 5 > 0
    rule = ndgpa.TopK(2, relevance=relevance)
    with watched() as watch:
        ndgpa.select(x, x, RAGGED, rule)
        ndgpa.select(x, x, RAGGED, rule, key_mask=key_mask.expand(2, -1), causal=True)
    assert {"sum_blocks", "relevance"} <= watch.kernels
    assert not watch.faults


@triton.jit
def _careless_kernel(p_x, p_y, SHIFT: tl.constexpr, COUNT: tl.constexpr):
    i = tl.program_id(0)
    x = tl.load(p_x + i)
    tl.store(p_y + i // COUNT + SHIFT, x)


@pytest.mark.parametrize(
    ("count", "shift", "same", "fault"),
    [
        (1, 0, False, None),
        (2, 0, False, "two programs write one address"),
        (1, 1, False, "writes beyond its tensors"),
        (1, 1, True, "a program reads what another one writes"),
    ],
)
def test_the_watch_sees_faults(count, shift, same, fault):
    x = torch.zeros(8 + (shift if same else 0))
    y = x if same else torch.zeros(8)
    with watched() as watch:
        _careless_kernel[(8,)](x, y, SHIFT=shift, COUNT=count)
    assert watch.faults == ({("_careless_kernel", fault)} if fault else set())
