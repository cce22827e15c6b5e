import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.operators import Hydra, Neighborhood, Operator
from ndgpa.operators._heads import head_counts
from ndgpa.testing import OperatorContract


class TestNeighborhood(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Neighborhood(3)


class TestNeighborhoodWithBias(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Neighborhood((2, 3), 1, rel_bias=True, heads=heads)


class TestNeighborhoodOnTwoGrids(OperatorContract):
    key_structure = ndgpa.Grid((9, 4), block=2)

    def operator(self, heads: int, width: int) -> Operator:
        return Neighborhood((3, 2), (2, 2) if width == 8 else (1, 2))


class TestHydra(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Hydra.of([3], [1, 2] if width == 8 else [1], rel_bias=False)


class TestHydraOfAnyOperators(OperatorContract):
    twice = False

    def operator(self, heads: int, width: int) -> Operator:
        return Hydra([ndgpa.Full(), ndgpa.GPA(2)])


# Which keys


def neighbours(place: int, size: int, key_size: int, kernel: int, dilation: int) -> list[int]:
    """The border rule, one query at a time."""
    at = (2 * place + 1) * key_size // (2 * size)
    residue, i = at % dilation, at // dilation
    count = math.ceil((key_size - residue) / dilation)
    start = min(max(i - kernel // 2, 0), count - kernel)
    return [(start + t) * dilation + residue for t in range(kernel)]


Axis = tuple[int, int, int, int]  # sites, keys, kernel, dilation


@st.composite
def axes(draw: Any, same: bool = False) -> list[Axis]:
    result = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        keys = draw(st.integers(kernel * dilation, kernel * dilation + 4))
        sites = keys if same or draw(st.booleans()) else draw(st.integers(1, 9))
        result.append((sites, keys, kernel, dilation))
    return result


def brute_force_mask(problem: list[Axis]) -> Tensor:
    shape, key_shape, _, _ = zip(*problem)
    mask = torch.zeros(math.prod(shape), math.prod(key_shape), dtype=torch.bool)
    for row, site in enumerate(itertools.product(*map(range, shape))):
        read = [neighbours(x, *axis) for x, axis in zip(site, problem)]
        for key in itertools.product(*read):
            mask[row, int(np.ravel_multi_index(key, key_shape))] = True
    return mask


def spaces(problem: list[Axis]) -> tuple[ndgpa.Grid, ndgpa.Grid, Neighborhood]:
    shape, key_shape, kernel, dilation = zip(*problem)
    return ndgpa.Grid(shape, 1), ndgpa.Grid(key_shape, 1), Neighborhood(kernel, dilation)


@given(axes(), st.integers(0, 2**20))
def test_it_equals_a_loop_over_queries_and_their_windows(problem: list[Axis], seed: int) -> None:
    structure, key_structure, operator = spaces(problem)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, heads, n, 3, generator=generator, dtype=torch.float64)
        for heads, n in ((4, structure), (2, key_structure), (2, key_structure))
        for n in (n.num_sites,)
    )
    mask = brute_force_mask(problem)
    expected = torch.zeros_like(query)
    for b, h, x in itertools.product(range(2), range(4), range(structure.num_sites)):
        read = mask[x]
        logits = key[b, h // 2, read] @ query[b, h, x] / 3**0.5
        expected[b, h, x] = logits.softmax(0) @ value[b, h // 2, read]
    out = operator(query, key, value, structure, key_structure)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@given(axes())
def test_its_mask_is_that_of_the_border_rule(problem: list[Axis]) -> None:
    structure, key_structure, operator = spaces(problem)
    mask = operator.mask(structure, key_structure)
    assert torch.equal(mask[0], brute_force_mask(problem))
    assert (mask.sum(dim=2) == math.prod(axis[2] for axis in problem)).all()


def test_windows_shift_at_a_border_and_keep_their_size() -> None:
    mask = Neighborhood(3).mask(ndgpa.Grid(6, 1))[0].int()
    assert mask.tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]


def test_an_even_kernel_has_its_extra_key_before_the_query() -> None:
    mask = Neighborhood(4).mask(ndgpa.Grid(8, 1))[0]
    assert mask[4].nonzero()[:, 0].tolist() == [2, 3, 4, 5]


def test_queries_of_a_finer_grid_read_around_the_key_under_their_centre() -> None:
    mask = Neighborhood(1).mask(ndgpa.Grid(6, 1), ndgpa.Grid(3, 1))[0]
    assert mask.int().argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2]


@given(axes(same=True))
def test_dilation_reads_its_own_residue_class_only(problem: list[Axis]) -> None:
    structure, _, operator = spaces(problem)
    mask = operator.mask(structure)[0]
    at = torch.cartesian_prod(*(torch.arange(axis[0]) for axis in problem)).view(-1, len(problem))
    for axis, (_, _, _, dilation) in enumerate(problem):
        residue = at[:, axis] % dilation
        assert not mask[residue[:, None] != residue].any()


@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 2)])
def test_a_kernel_as_large_as_the_grid_is_full_attention(shape: tuple[int, ...]) -> None:
    structure = ndgpa.Grid(shape, 1)
    inputs = [torch.randn(2, 3, structure.num_sites, 4, dtype=torch.float64) for _ in range(3)]
    out = Neighborhood(shape)(*inputs, structure)
    expected = ndgpa.Full()(*inputs, structure)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_it_agrees_with_natten() -> None:
    natten = pytest.importorskip("natten", reason="natten is an optional oracle")
    structure = ndgpa.Grid((9, 11), 1)
    inputs = [torch.randn(1, 2, 99, 16) for _ in range(3)]
    grids = [x.view(1, 2, 9, 11, 16).movedim(1, 3).contiguous() for x in inputs]
    theirs = natten.na2d(*grids, kernel_size=3, backend="flex-fna")
    out = Neighborhood(3)(*inputs, structure)
    torch.testing.assert_close(out.view(1, 2, 9, 11, 16).movedim(1, 3), theirs)


# The relative bias


@given(axes(same=True))
def test_bias_depends_on_the_relative_position_only(problem: list[Axis]) -> None:
    """Weights of zero queries are the softmax of the bias; the table is looked up pair by pair."""
    shape, _, kernel, dilation = zip(*problem)
    structure = ndgpa.Grid(shape, 1)
    operator = Neighborhood(kernel, dilation, rel_bias=True, heads=2).double()
    assert operator.rel_bias is not None
    torch.nn.init.normal_(operator.rel_bias)
    n = structure.num_sites
    zeros = torch.zeros(1, 2, n, 1, dtype=torch.float64)
    weights = operator(zeros, zeros, torch.eye(n).double().expand(1, 2, n, n), structure)[0]
    mask = operator.mask(structure)[0]
    for site in range(0, n, 3):
        at = np.unravel_index(site, shape)
        bias = torch.full((2, n), -torch.inf, dtype=torch.float64)
        for key in mask[site].nonzero()[:, 0].tolist():
            entry = tuple(
                (int(j) - int(i)) // d + k - 1
                for i, j, k, d in zip(at, np.unravel_index(key, shape), kernel, dilation)
            )
            bias[:, key] = operator.rel_bias[(slice(None), *entry)].detach()
        torch.testing.assert_close(weights[:, site], bias.softmax(dim=1))


def test_gradients_reach_the_bias() -> None:
    structure = ndgpa.Grid((3, 4), 1)
    operator = Neighborhood((3, 2), (1, 2), rel_bias=True, heads=2).double()
    inputs = [torch.randn(2, 2, 12, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def call(bias: Tensor, *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(operator, {"rel_bias": bias}, (*inputs, structure))

    assert torch.autograd.gradcheck(call, (bias, *inputs), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (bias, *inputs), fast_mode=True)


# Hydra


@pytest.mark.parametrize(
    ("heads", "parts", "expected"),
    [(16, 3, (5, 5, 6)), (16, 5, (3, 3, 3, 3, 4)), (16, 4, (4, 4, 4, 4)), (3, 2, (1, 2))],
)
def test_the_last_parts_take_the_heads_that_are_left(
    heads: int, parts: int, expected: tuple[int, ...]
) -> None:
    assert head_counts("Hydra", heads, parts) == expected
    operator = Hydra.of([(3, 3)], [1] * parts, rel_bias=True, heads=heads)
    tables = [part.rel_bias for part in operator.parts if isinstance(part, Neighborhood)]
    assert tuple(len(t) for t in tables if t is not None) == expected


@pytest.mark.parametrize(("heads", "key_heads"), [(5, 5), (5, 1), (6, 2), (6, 3), (8, 2)])
def test_hydra_is_its_parts_side_by_side(heads: int, key_heads: int) -> None:
    structure = ndgpa.Grid((6, 6), 1)
    query = torch.randn(1, heads, 36, 4, dtype=torch.float64)
    key, value = torch.randn(2, 1, key_heads, 36, 4, dtype=torch.float64)
    parts = [Neighborhood(3), Neighborhood(3, 2)]
    out = Hydra(parts)(query, key, value, structure)
    key, value = (x.repeat_interleave(heads // key_heads, 1) for x in (key, value))
    cut = heads // 2
    for part, some in zip(parts, (slice(0, cut), slice(cut, None))):
        torch.testing.assert_close(
            out[:, some], part(query[:, some], key[:, some], value[:, some], structure)
        )


def test_the_parts_of_hydra_know_which_queries_select() -> None:
    """Of the one cell, query 0 wants block 0 and query 1, alone in the mask, wants block 1."""
    query, key = torch.zeros(2, 1, 2, 4, 2, dtype=torch.float64)
    query[..., 0, 0], query[..., 1, 1] = 20, 10
    key[..., :2, 0] = key[..., 2:, 1] = 1
    value = torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)
    asked = torch.tensor([[False, True, False, False]])
    operator = Hydra([ndgpa.GPA(1), ndgpa.GPA(1)])
    out = operator(query, key, value, ndgpa.Sequence(4, 2, 2), query_mask=asked)
    assert (out[..., :2] == 0).all()
    torch.testing.assert_close(out[..., 2:], torch.full_like(out[..., 2:], 0.5))


def test_the_parameters_of_the_parts_are_its_own() -> None:
    operator = Hydra([ndgpa.Full(), Neighborhood((3, 3), rel_bias=True, heads=2)])
    assert [tuple(p.shape) for p in operator.parameters()] == [(2, 5, 5)]


# Errors


@pytest.mark.bad_input
@pytest.mark.parametrize(("size", "dilation"), [(8, 1), (16, 2), (32, 4), (256, 32)])
def test_the_windows_of_stylenat_fit_their_levels(size: int, dilation: int) -> None:
    fits, structure = Neighborhood(7, dilation), ndgpa.Grid((size, size), 1)
    assert 7 * dilation <= size
    x = torch.zeros(1, 1, size * size, 1)
    assert fits(x, x, x, structure).shape == x.shape
    with pytest.raises(ValueError, match=f"covers {9 * dilation} sites but axis 0"):
        Neighborhood(9, dilation)(x, x, x, structure)


@pytest.mark.bad_input
def test_errors_say_what_was_wanted() -> None:
    x = torch.zeros(1, 4, 12, 2)
    clusters = ndgpa.Clusters(torch.arange(12) // 3, torch.arange(4))
    with pytest.raises(TypeError, match="Neighborhood needs a Grid as structure; got Clusters"):
        Neighborhood(3)(x, x, x, clusters)
    with pytest.raises(ValueError, match="rank 2 but keys on one of rank 1"):
        Neighborhood(3)(x, x, x, ndgpa.Grid((3, 4), 1), ndgpa.Grid(12, 1))
    with pytest.raises(ValueError, match="kernel has 3 entries but the grid has 2 axes"):
        Neighborhood((1, 1, 1))(x, x, x, ndgpa.Grid((3, 4), 1))
    with pytest.raises(ValueError, match="kernel must be at least 1; got 0"):
        Neighborhood(0)
    with pytest.raises(ValueError, match="rel_bias=True needs heads"):
        Neighborhood(3, rel_bias=True)
    with pytest.raises(ValueError, match="query has 4 heads but the relative bias has 2"):
        Neighborhood((3, 3), rel_bias=True, heads=2)(x, x, x, ndgpa.Grid((3, 4), 1))
    with pytest.raises(ValueError, match="Hydra has 5 parts but query has 4 heads"):
        Hydra([ndgpa.Full()] * 5)(x, x, x, ndgpa.Grid((3, 4), 1))
    with pytest.raises(ValueError, match="dilations has 3 entries; expected 1 or 4"):
        Hydra.of([3, 3, 5, 5], [1, 2, 3])
