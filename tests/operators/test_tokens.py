"""Operators on spaces with special tokens keep the contract of every operator."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ndgpa
from ndgpa.operators import Operator
from ndgpa.testing import OperatorContract

LAWS = (
    "test_batches_do_not_see_each_other",
    "test_masked_keys_do_not_exist",
    "test_what_the_mask_hides_has_no_influence",
    "test_the_same_input_gives_the_same_bits",
    "test_strides_do_not_matter",
)


class TestGPAWithTokens(OperatorContract):
    structure = ndgpa.with_tokens(ndgpa.Grid((6, 8), 2, 2), 2, 1)
    tiny = ndgpa.with_tokens(ndgpa.Grid((4, 4), 2), 1)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(3)


@pytest.mark.parametrize(
    "operator", [ndgpa.operators.Nystrom(4), ndgpa.operators.Performer(8), ndgpa.Full()]
)
def test_operators_that_read_everything_take_tokens_as_sites(operator: Operator) -> None:
    """As on a sequence of as many sites, whatever the space beside the tokens is."""
    space = ndgpa.with_tokens(ndgpa.Image((4, 6), 2), 1, 2)
    query, key, value = torch.randn(3, 1, 2, 27, 8)
    expected = operator(query, key, value, ndgpa.Sequence(27, 3))
    torch.testing.assert_close(operator(query, key, value, space), expected)


def test_one_space_serves_threads_and_checkpointed_steps() -> None:
    """It holds nothing of a call: two images of as many sites, one after the other and at once."""
    wide, tall = (ndgpa.with_tokens(ndgpa.Image(shape, 2), 1, 1) for shape in ((4, 8), (8, 4)))
    x = torch.randn(1, 2, 34, 8)

    def slope(space: ndgpa.SpatialStructure, checkpointed: bool) -> torch.Tensor:
        leaf = x.clone().requires_grad_()

        def run(y: torch.Tensor) -> torch.Tensor:
            return ndgpa.gpa(y, y, y, space, 2)

        out = checkpoint(run, leaf, use_reentrant=False) if checkpointed else run(leaf)
        ndgpa.gpa(x, x, x, wide, 2)  # another call, between forward and backward
        return torch.autograd.grad(out.square().sum(), leaf)[0]

    expected = [slope(space, False) for space in (wide, tall)]
    assert not torch.allclose(*expected)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(slope, [wide, tall] * 8, [True] * 16))
    for place, grad in enumerate(found):
        assert torch.equal(grad, expected[place % 2])


class TokensOfKeysAlone(OperatorContract):
    structure = ndgpa.Video((3, 4, 6), 2, (1, 2, 1))
    key_structure = ndgpa.with_tokens(ndgpa.Sequence(30, 4), 3)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2, affinity="euclidean", causal=True, far="block")


class TokensOfQueriesAlone(OperatorContract):
    structure = ndgpa.with_tokens(ndgpa.Grid((6, 8), 2, 2), 0, 3)
    key_structure = ndgpa.Sequence(30, 4)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2, far="site")


class DenseTokens(OperatorContract):
    structure = ndgpa.with_tokens(ndgpa.Grid((6, 8), 2, 2), 1, 3)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.Full()


@pytest.mark.parametrize("contract", [TokensOfKeysAlone, TokensOfQueriesAlone, DenseTokens])
@pytest.mark.parametrize("law", LAWS)
def test_tokens_of_either_side_keep_the_laws(contract: type[OperatorContract], law: str) -> None:
    getattr(contract(), law)()
