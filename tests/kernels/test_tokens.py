"""Special tokens beside kernels, in float32: one call here, the contract among the slow tests."""

import pytest
import torch

import ndgpa
from ndgpa.testing import TokensContract


@pytest.mark.slow
class TestTriton(TokensContract):
    backend = "triton"
    dtype = torch.float32
    tolerance = 2e-5


def test_kernels_agree_with_the_reference_beside_padded_tokens() -> None:
    space = ndgpa.with_tokens(ndgpa.Video((3, 4, 5), (1, 2, 2), (1, 2, 1)), 2, 1)
    query, key, value = torch.randn(3, 1, 2, space.num_sites, 8)
    mask = torch.rand(1, space.num_sites) < 0.8
    outs, slopes = [], []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        out = ndgpa.gpa(*leaves, space, 3, causal=True, key_mask=mask, backend=backend)
        outs.append(out)
        slopes.append(torch.autograd.grad(out.sin().sum(), leaves))
    for mine, theirs in zip((outs[0], *slopes[0]), (outs[1], *slopes[1]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)
