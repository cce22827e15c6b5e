"""The kernel of the second look, and its form for graphs, against the computation in torch."""

import pytest
import torch

from ndgpa.selection import second_look
from ndgpa.selection.second_look import mass_in_one_piece, mass_in_torch
from ndgpa.testing.draw import seeded
from tests.kernels.memory import watched


def problem(heads=(2, 2, 2), places=6, parts=3, width=5, features=8, blocks=9):
    """Random inputs with keys that do not exist, queries that take no part and empty slots."""
    g, (h, hk, hs), cells = seeded(4), heads, 4
    query = torch.randn(2, h, cells, places, features, generator=g)
    key = torch.randn(2, hk, blocks, parts, features, generator=g)
    bias = torch.randn(2, hk, blocks, parts, generator=g)
    bias = bias.masked_fill(torch.rand(bias.shape, generator=g) < 0.3, -torch.inf)
    bias[:, :, 2] = -torch.inf
    order = torch.rand(2, hs, cells, blocks, generator=g).argsort(dim=-1)[..., :width]
    candidates = order.masked_fill(torch.rand(order.shape, generator=g) < 0.2, -1).int()
    candidates[:, :, 1] = -1
    weight = torch.rand(2, cells, places, generator=g)
    return query, key, bias, candidates, weight.masked_fill(weight < 0.3, 0), 0.7


def in_triton(query, key, bias, candidates, weight, scale):
    from ndgpa.selection.triton_second_look import fits, write_mass

    assert fits(query, key)
    out = query.new_full(candidates.shape, torch.nan)
    write_mass(out, query, key, bias, candidates, weight, scale)
    return out


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"heads": (4, 2, 2), "places": 20, "parts": 4, "width": 9},
        {"heads": (4, 2, 4), "parts": 1, "width": 1},
        {"heads": (4, 4, 1), "places": 70, "features": 20},
        {"heads": (2, 1, 1), "parts": 33, "places": 3},
    ],
)
@pytest.mark.parametrize("form", [in_triton, mass_in_one_piece])
def test_it_is_the_formula_in_torch(form, shape):
    given = problem(**shape)
    wanted = mass_in_torch(*given)
    found = form(*given)
    assert torch.equal(found == -torch.inf, wanted == -torch.inf)
    there = wanted > -torch.inf
    assert there.any()
    torch.testing.assert_close(found[there], wanted[there], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_a_query_that_is_no_number_takes_no_part(junk):
    query, *others = problem()
    query[0, 0, 0, 1] = junk
    wanted = mass_in_torch(query, *others)
    assert wanted.isfinite().any()
    torch.testing.assert_close(in_triton(query, *others), wanted, rtol=1e-5, atol=1e-6)


def test_equal_candidates_have_equal_mass():
    query, key, bias, candidates, weight, scale = problem(width=7, parts=2)
    key[:], bias[:] = key[:, :, :1], bias[:, :, :1] * 0
    candidates[:] = torch.arange(7)
    mass = in_triton(query, key, bias, candidates, weight, scale)
    assert (mass == mass[..., :1]).all()


def test_no_program_writes_what_another_one_reads():
    given = problem(heads=(4, 2, 2), places=20)
    with watched() as watch:
        in_triton(*given)
    assert watch.kernels == {"second_look"}
    assert not watch.faults


def test_the_operator_takes_the_kernel_where_there_is_one(monkeypatch):
    given = problem()
    monkeypatch.setattr(second_look, "has_triton", lambda x: True)
    monkeypatch.setattr(second_look, "mass_in_torch", None)
    torch.testing.assert_close(second_look.second_look(*given), in_triton(*given))
