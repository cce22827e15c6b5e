"""Operators on spaces with special tokens keep the contract of every operator."""

import pytest

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
