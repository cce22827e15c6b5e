"""Features are made so that the answer is known."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ndgpa
from ndgpa.analysis import Suggestions, coverage, gpa_entries
from ndgpa.nn import SpatialAttention


def own_block_only(side: int, block: int) -> Tensor:
    """Features of (side, side) sites: all of a block's attention lies on the block."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    number = rows // block * (side // block) + columns // block
    codes = nn.functional.one_hot(number.flatten(), (side // block) ** 2)
    return 30 * codes.float()[None, None]


def test_attention_within_blocks_of_four_needs_one_of_them() -> None:
    x = own_block_only(side=32, block=4)
    found = ndgpa.suggest(
        (x, x, ndgpa.Image((32, 32), 2)), coverage=0.99, cells=[1], samples=10_000
    )[0]
    needed = {2: 4, 4: 1, 8: 1}  # blocks of this side hold one, a quarter, all of what is read
    costs = {side: gpa_entries(ndgpa.Image((32, 32), side), k).total for side, k in needed.items()}
    best = min(costs, key=lambda side: costs[side])
    assert (found.block, found.k, found.far) == ((best, best), needed[best], None)
    assert found.coverage == pytest.approx(1, abs=1e-6)
    assert found.entries == costs[best] / 1024**2


@pytest.mark.parametrize(("side", "k"), [(2, 4), (4, 1), (8, 1)])
def test_only_the_given_blocks_are_tried(side: int, k: int) -> None:
    x = own_block_only(side=32, block=4)
    image = ndgpa.Image((32, 32), side)
    found = ndgpa.suggest((x, x, image), coverage=0.99, blocks=[side], cells=[1])[0]
    assert (found.block, found.cell, found.k) == ((side, side), (1, 1), k)


def test_even_attention_is_covered_in_proportion_and_by_its_means() -> None:
    query, key = torch.zeros(2, 3, 512, 4), torch.randn(2, 3, 512, 4)
    space = ndgpa.Sequence(512, 16)
    found = ndgpa.suggest((query, key, space), coverage=0.5, blocks=[16], cells=[1])[0]
    assert found.k == 16
    assert found.coverage == pytest.approx(16 / 32)
    assert found.far == "site"
    assert found.with_far == pytest.approx(1)
    assert found.curve == tuple((k, pytest.approx(k / 32)) for k, _ in found.curve)
    assert found.curve[-1][0] == 32


class Padded(nn.Module):
    """A layer whose second sample has 90 sites, the others padding."""

    def __init__(self, operator: ndgpa.Operator) -> None:
        super().__init__()
        self.layer = SpatialAttention(16, heads=4, key_heads=2, operator=operator)
        self.space = ndgpa.Sequence(130, 8, 2)
        self.mask = torch.arange(130).expand(2, -1) < torch.tensor([[130], [90]])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.space, key_mask=self.mask)


@pytest.mark.parametrize("affinity", ["dot", "euclidean"])
@pytest.mark.parametrize("causal", [False, True])
def test_coverage_is_the_share_of_full_attention_on_the_selection(
    causal: bool, affinity: Any
) -> None:
    torch.manual_seed(0)
    x, model = 2 * torch.randn(2, 130, 16), Padded(ndgpa.GPA(3, affinity=affinity, causal=causal))
    layer, space, mask = model.layer, model.space, model.mask
    found = ndgpa.suggest(
        model, x, coverage=0.7, blocks=[8], cells=[2], samples=10_000, verbose=False
    )[0]
    with torch.no_grad():
        query = layer.to_query(x).unflatten(-1, (4, 4)).transpose(1, 2)
        key = layer.to_key(x).unflatten(-1, (2, 4)).transpose(1, 2)
        options: Any = {"affinity": affinity, "causal": causal, "key_mask": mask}
        blocks = ndgpa.select(query, key, space, found.k, **options).blocks
    shares = []
    for b, h, n in itertools.product(range(2), range(4), range(130)):
        if not mask[b, n]:
            continue
        q, keys = query[b, h, n].double(), key[b, h // 2].double()
        logits = keys @ q / 2 if affinity == "dot" else -(keys - q).square().sum(-1) / 2
        seen = mask[b] & (torch.arange(130) <= n) if causal else mask[b]
        weights = logits.masked_fill(~seen, -torch.inf).softmax(dim=0)
        read = set(blocks[b, h, n // 16].tolist())
        shares.append(float(sum(weights[y] for y in range(130) if y // 8 in read)))
    assert found.coverage == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    assert found.coverage >= 0.7
    assert found.coverage - 1e-5 <= found.with_far <= 1 + 1e-5
    assert found.name == "layer"


def test_samples_estimate_the_coverage_of_all() -> None:
    torch.manual_seed(0)
    query, key = 2 * torch.randn(1, 2, 1024, 8), 2 * torch.randn(1, 2, 1024, 8)
    space = ndgpa.Image((32, 32), 4, 2)
    options: Any = {"coverage": 0.6, "blocks": [4], "cells": [2], "verbose": False}
    every = ndgpa.suggest((query, key, space), samples=10_000, **options)[0]
    exact = coverage(query, key, ndgpa.select(query, key, space, every.k), space, samples=None)
    assert every.coverage == pytest.approx(float(exact.mean()), abs=1e-5)
    few = ndgpa.suggest((query, key, space), samples=256, **options)[0]
    assert dict(few.curve)[every.k] == pytest.approx(every.coverage, abs=0.05)


def test_special_tokens_are_always_kept() -> None:
    query = torch.zeros(1, 1, 3 + 64, 4)
    space = ndgpa.with_tokens(ndgpa.Image((8, 8), 2), prefix=3)
    found = ndgpa.suggest((query, query, space), coverage=0.25, blocks=[2], cells=[1])[0]
    assert found.curve[0] == (1, pytest.approx((3 + 4) / 67))
    assert found.k == 4
    assert found.space == (8, 8)


def test_memory_bounds_the_suggestion() -> None:
    x = torch.zeros(1, 1, 1024, 4)
    image = ndgpa.Image((32, 32), 4)
    budget = 4 * gpa_entries(image, 6).total
    found = ndgpa.suggest((x, x, image), memory=budget, blocks=[4], cells=[1])[0]
    assert found.k == 6
    assert found.coverage == pytest.approx(6 / 64)


def test_each_layer_of_a_model_is_measured_and_left_as_it_was() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = SpatialAttention(8, heads=2, operator=ndgpa.GPA(1))
            self.second = SpatialAttention(8, operator=ndgpa.operators.NoAttention())
            self.space = ndgpa.Image((16, 16), 4)

        def forward(self, x: Tensor, times: int) -> Tensor:
            for _ in range(times):
                x = self.second(self.first(x, self.space), self.space)
            return x

    model, x = Two(), torch.randn(1, 256, 8)
    before = model(x, 1)
    found = ndgpa.suggest(model, (x, 2), dense=False)
    assert [layer.name for layer in found] == ["first", "second"]
    assert found.rules == {layer.name: ndgpa.TopK(layer.k) for layer in found}
    assert torch.equal(model(x, 1), before)
    assert model.first.operator == ndgpa.GPA(1)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, sites, 8\)"):
        ndgpa.suggest(model, {"x": x[:, :, :3], "times": 1})
    assert model.first.operator == ndgpa.GPA(1)


def test_layers_see_what_dense_layers_before_them_make() -> None:
    torch.manual_seed(0)
    space, x = ndgpa.Image((16, 16), 4), 3 * torch.randn(1, 256, 8)
    model = nn.Module()
    first, second = (SpatialAttention(8, operator=ndgpa.GPA(1)) for _ in range(2))
    model.first, model.second = first, second
    model.forward = lambda x: second(first(x, space), space)  # type: ignore[method-assign]
    found = ndgpa.suggest(model, x, verbose=False)
    first.operator = ndgpa.Full()
    again = ndgpa.suggest(model, x, dense=False, verbose=False)
    assert found == again


def test_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = own_block_only(side=32, block=4)
    found = ndgpa.suggest((x, x, ndgpa.Image((32, 32), 4)), cells=[1])
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(found).splitlines()
    assert lines[0].split() == [
        "layer",
        "space",
        "block",
        "cell",
        "k",
        "far",
        "coverage",
        "with",
        "far",
        "of",
        "dense",
    ]
    assert lines[1].split()[:5] == ["-", "32x32", "4x4", "1x1", "1"]
    found.plot(tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").stat().st_size > 1000


def test_points_keep_their_blocks() -> None:
    cloud = ndgpa.PointCloud(torch.rand(500, 3), 16, 2)
    x = torch.zeros(1, 1, 500, 4)
    found = ndgpa.suggest((x, x, cloud), coverage=0.3)
    assert len(found) == 1
    assert (found[0].space, found[0].block, found[0].cell) == ((500,), (16,), (2,))


def test_a_suggestion_is_an_operator() -> None:
    x = torch.zeros(1, 1, 512, 4)
    found = ndgpa.suggest((x, x, ndgpa.Sequence(512, 16)), coverage=0.5)
    assert isinstance(found, Suggestions)
    assert found[0].operator == ndgpa.GPA(ndgpa.TopK(found[0].k), far="site")


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    x = torch.zeros(1, 1, 64, 4)
    image = ndgpa.Image((8, 8), 2)
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\]; got 2"):
        ndgpa.suggest((x, x, image), coverage=2)
    with pytest.raises(ValueError, match="memory must be at least 1; got 0"):
        ndgpa.suggest((x, x, image), memory=0)
    with pytest.raises(ValueError, match=r"blocks has \(2, 2, 2\), but the grid has 2 axes"):
        ndgpa.suggest((x, x, image), blocks=[(2, 2, 2)])
    with pytest.raises(ValueError, match="no module of Linear attends through ndgpa: use Spatial"):
        ndgpa.suggest(nn.Linear(1, 1), torch.zeros(1))
    with pytest.raises(TypeError, match="suggest takes a model, or a query, a key and their"):
        ndgpa.suggest([x, x, image])  # type: ignore[arg-type]
