"""Keys of which a site stands in no block, or in several: its gradient is a sum over all places."""

import pytest
import torch
from hypothesis import given, strategies as st

from ndgpa import Clusters, Grid, Selection
from ndgpa.structures import Halo, Jittered, Strided
from tests.kernels.kernel_problems import attention, problems, reference, triton, within_budget

SAMPLINGS = {"strided": Strided(2), "jittered": Jittered(2), "halo": Halo(1)}
BACKWARD = "ndgpa.attention.triton.backward_keys"


@pytest.mark.parametrize(
    ("causal", "dtype"),
    [
        (False, torch.float16),
        (True, torch.float32),
        pytest.param(False, torch.float32, marks=pytest.mark.slow),
        pytest.param(True, torch.float16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_sampled_keys_are_within_the_budget(sampling, causal, dtype):
    space = Grid((6, 9), 3, 2, time_axis=0)
    problem = attention(
        space, heads=4, key_heads=2, selection_heads=2, slots=4,
        biased=True, keyed=True, causal=causal,
    )  # fmt: skip
    within_budget(problem.reading(sampling.sites(space)), dtype)


@given(data=st.data())
def test_any_table_of_keys_is_within_the_budget(data):
    """Rows of any sites: some in no row, some in several, some twice in one."""
    problem = data.draw(problems())
    space = problem.key_structure
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shape = space.num_blocks, data.draw(st.integers(1, 5))
    sites = torch.randint(-1, space.num_sites, shape, generator=g)
    within_budget(problem.reading(sites), torch.float32)


@pytest.mark.parametrize("longest", [1, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_hot_blocks_of_sampled_keys_are_summed_in_order(sampling, longest, monkeypatch):
    monkeypatch.setattr(f"{BACKWARD}.longest_segment", lambda *_: longest)
    space = Grid((12,), 3, 1)
    problem = attention(space, slots=2, keyed=True, width=6, value_width=4)
    problem = problem.reading(sampling.sites(space))
    problem.blocks[..., 0] = 3
    exact = problem.solve(reference, torch.float64)
    ours, again = (problem.solve(triton, torch.float32) for _ in range(2))
    for name, x in exact.items():
        assert torch.allclose(ours[name].double(), x, atol=2e-5), name
        assert torch.equal(ours[name], again[name])


def test_a_site_in_no_block_has_gradient_zero_and_one_in_two_has_both():
    """One query that weighs three places of value alike: of sites 1, 2 and 2."""
    space = Clusters(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0]))
    sites = torch.tensor([[1, 2], [2, -1]])
    query, key = torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1)
    value = torch.zeros(1, 1, 4, 1, requires_grad=True)
    selection = Selection(torch.tensor([[[[0, 1]]]], dtype=torch.int32))
    out, lse = triton(query, key, value, selection, space, space, scale=1.0, key_sites=sites)
    torch.testing.assert_close(lse.exp(), torch.full((1, 1, 4), 3.0))
    (grad,) = torch.autograd.grad(out[:, :, :1].sum(), value)
    torch.testing.assert_close(grad.flatten(), torch.tensor([0, 1 / 3, 2 / 3, 0]))
