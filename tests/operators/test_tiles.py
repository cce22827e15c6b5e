"""The two custom operators, as torch wants custom operators to be."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.attention.chunks import BUDGET
from ndgpa.attention.features import attend_by_features
from ndgpa.attention.tiles import attend_tiles
from ndgpa.operators.neighborhood import neighborhood_tables
from ndgpa.operators.sparse_patterns import local_sparse_tables


def tiles_arguments() -> tuple[Any, ...]:
    query, key, value = (torch.randn(2, h, 12, 4, requires_grad=True) for h in (4, 2, 2))
    bias = torch.randn(4, 15, requires_grad=True)
    queries, keys, pattern, seen, offset = neighborhood_tables(
        [3, 4], [3, 4], [2, 3], [1, 1], True, torch.device("cpu")
    )
    mask = torch.rand(2, 12) < 0.8
    return query, key, value, mask, bias, queries, keys, pattern, seen, offset, 0.5


def features_arguments() -> tuple[Any, ...]:
    query, key, value = (torch.randn(2, h, 12, 4, requires_grad=True) for h in (4, 2, 2))
    mask = torch.rand(2, 12) < 0.8
    return query, key, value, mask, torch.randn(6, 4), 0.5, 1e-4, "softmax"


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("operator", "arguments"),
    [(attend_tiles, tiles_arguments), (attend_by_features, features_arguments)],
    ids=["tiles", "features"],
)
def test_they_pass_the_checks_of_torch(operator: Any, arguments: Any) -> None:
    torch.library.opcheck(operator, arguments())


@pytest.mark.compiled
def test_tables_are_made_alike_inside_a_trace() -> None:
    options = [3, 5], [6, 4], [2, 3], [1, 1], True, torch.device("cpu")
    torch.library.opcheck(neighborhood_tables, options)
    for pattern in ("ltr", "rtl", "strided", "fixed"):
        for step in (1, 2):
            numbers = [step, 4, 1]
            arguments = numbers, pattern, "esa", "geometric", torch.device("cpu")
            torch.library.opcheck(local_sparse_tables, ([4, 6], [4, 6], *arguments))
            tables = local_sparse_tables([4, 6], [4, 6], *arguments)
            assert all(table.is_contiguous() for table in tables)


@pytest.mark.parametrize(
    "operator",
    [
        ndgpa.operators.Neighborhood(3),
        ndgpa.operators.MultiAxis(2),
        ndgpa.operators.LocalSparse("ltr"),
        ndgpa.operators.Performer(4),
    ],
    ids=lambda o: type(o).__name__,
)
def test_mapping_over_an_axis_is_a_loop_over_it(operator: Any) -> None:
    if isinstance(operator, torch.nn.Module):
        operator.eval()
    image = ndgpa.Image((4, 6), 2)
    inputs = [torch.randn(3, 2, 2, 24, 4, dtype=torch.float64) for _ in range(3)]

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return operator(query, key, value, image)

    expected = torch.stack([call(*some) for some in zip(*inputs)])
    torch.testing.assert_close(torch.func.vmap(call)(*inputs), expected)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile a chunk, all tiles at once: the same numbers, and the same gradients."""
    image = ndgpa.Image((12, 13), 2)
    operator = ndgpa.operators.Neighborhood((3, 5), rel_bias=True, heads=2).double()
    inputs = [torch.randn(2, 2, 156, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for budget in (1, 1 << 30):
        monkeypatch.setitem(BUDGET, "cpu", budget)
        out = operator(*inputs, image)
        leaves = [*inputs, *operator.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs)


def test_a_query_that_is_not_finite_reaches_the_keys_of_its_tile_alone() -> None:
    """Ragged tiles at the other end of the image read none of them."""
    image = ndgpa.Image((20, 20), 2)
    inputs = [torch.randn(1, 1, 400, 4, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        inputs[0][:, :, 0] = torch.nan
    out = ndgpa.operators.Neighborhood(3)(*inputs, image)
    for grad in torch.autograd.grad(out[:, :, 1:].sum(), inputs):
        assert grad[:, :, 200:].isfinite().all()


def test_forward_mode_is_refused() -> None:
    image, x = ndgpa.Image((4, 4), 2), torch.randn(1, 2, 16, 2)

    def call(x: Tensor) -> Tensor:
        return ndgpa.operators.Neighborhood(3)(x, x, x, image)

    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(call, (x,), (x,))
