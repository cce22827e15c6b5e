"""Attention maps and saliency of any operator."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.analysis import attention_map, saliency, to_grid
from ndgpa.operators import Hydra, LocalSparse, MultiAxis, Neighborhood, Nystrom, Performer

IMAGE = ndgpa.Image((6, 8), 2)
OPERATORS: list[Any] = [
    ndgpa.Full(),
    ndgpa.GPA(3),
    ndgpa.GPA(ndgpa.TopK(3, share="group")),
    Neighborhood(3),
    Hydra([Neighborhood(3), Neighborhood(3, 2)]),
    MultiAxis(),
    LocalSparse("ltr"),
    Performer(4).eval(),
]


def query_and_key(heads: int = 2, key_heads: int = 1) -> tuple[Tensor, Tensor]:
    return (torch.randn(2, h, 48, 4, dtype=torch.float64) for h in (heads, key_heads))  # type: ignore[return-value]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_maps_are_the_weights_of_the_values(operator: Any) -> None:
    query, key = query_and_key()
    weights = attention_map(operator, query, key, IMAGE, torch.arange(48))
    value = torch.randn(2, 1, 48, 3, dtype=torch.float64)
    torch.testing.assert_close(weights @ value, operator(query, key, value, IMAGE))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 48, dtype=torch.float64))
    image = to_grid(weights, IMAGE)
    assert image.shape == (2, 2, 48, 6, 8)


def test_low_rank_attention_has_a_map_too() -> None:
    query, key = query_and_key(key_heads=2)
    operator = Nystrom(6, conv_kernel=3, heads=2).double()
    value = torch.randn(2, 2, 48, 3, dtype=torch.float64)
    rows = attention_map(operator, query, key, IMAGE, torch.tensor([5, 40]))
    with torch.no_grad():
        expected = operator(query, key, value, IMAGE)[:, :, [5, 40]]
    torch.testing.assert_close(rows @ value, expected)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_uniform_attention_has_uniform_saliency(operator: Any) -> None:
    """Every reader of a key gives it the same weight, so the mean over its readers is that."""
    query, key = query_and_key()
    maps = attention_map(operator, 0 * query, key, IMAGE, torch.arange(48))
    result = saliency(operator, 0 * query, key, IMAGE)
    readers = (maps != 0).sum(dim=2)
    torch.testing.assert_close(result, maps.sum(dim=2) / readers.clamp(min=1))
    if isinstance(operator, (ndgpa.Full, Neighborhood)):
        count = 48 if isinstance(operator, ndgpa.Full) else 9
        torch.testing.assert_close(result, torch.full_like(result, 1 / count))


def test_saliency_is_an_image_over_the_keys() -> None:
    """As in YLG, with queries on a grid of twice the size, to which the image is enlarged."""
    spaces = ndgpa.Image((12, 12), 2), ndgpa.Image((6, 6), 2)
    query, key = torch.zeros(1, 4, 144, 4), torch.randn(1, 4, 36, 4)
    result = saliency(ndgpa.Full(), query, key, *spaces)
    torch.testing.assert_close(result, torch.full((1, 4, 36), 1 / 36))
    sparse = saliency(LocalSparse(), torch.randn_like(query), key, *spaces)
    image = to_grid(sparse, spaces[1], size=(12, 12))
    assert image.shape == (1, 4, 12, 12)
    assert torch.equal(image[0, 0, ::2, ::2].flatten(), sparse[0, 0])
    assert torch.equal(image[..., ::2, ::2], image[..., 1::2, 1::2])


def test_a_key_that_nobody_reads_has_no_saliency() -> None:
    query, key = query_and_key()
    mask = torch.ones(2, 48, dtype=torch.bool)
    mask[:, 7] = False
    result = saliency(ndgpa.Full(), query, key, IMAGE, key_mask=mask)
    assert (result[..., 7] == 0).all()
    assert (saliency(ndgpa.operators.NoAttention(), query, key, IMAGE) == 0).all()


@pytest.mark.bad_input
def test_only_a_grid_has_an_image() -> None:
    clusters = ndgpa.Clusters(torch.arange(12) // 3, torch.arange(4))
    with pytest.raises(TypeError, match="to_grid needs a Grid as structure; got Clusters"):
        to_grid(torch.zeros(12), clusters)
