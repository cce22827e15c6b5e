"""GPA with a far field as an operator."""

import ndgpa
from ndgpa.operators import Operator
from ndgpa.testing import OperatorContract


class TestGPAWithFarFieldByBlock(OperatorContract):
    key_structure = ndgpa.Sequence(30, 4)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2, far="block", affinity="euclidean")


class TestGPAWithFarField(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(3, far="site")


class CausalFarField(OperatorContract):
    structure = ndgpa.Video((3, 4, 6), 2, (1, 2, 1))

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2, far="block", causal=True)


class SampledFarField(OperatorContract):
    key_structure = ndgpa.Sequence(30, 4)

    def operator(self, heads: int, width: int) -> Operator:
        return ndgpa.GPA(2, far="block", read=ndgpa.structures.Strided(2))


def test_the_mask_knows_what_the_far_field_reads() -> None:
    for contract in (CausalFarField(), SampledFarField()):
        contract.test_what_the_mask_hides_has_no_influence()
