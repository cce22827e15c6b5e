"""Full attention, GPA and no attention keep the contract that the other operators keep."""

import ndgpa
from ndgpa.operators import Operator
from tests.contracts.operator import OperatorContract


class TestFull(OperatorContract):
    twice = False  # the fused attention of PyTorch has no second derivative

    @staticmethod
    def operator(heads: int, width: int) -> Operator:
        return ndgpa.Full()


class TestGPA(OperatorContract):
    @staticmethod
    def operator(heads: int, width: int) -> Operator:
        return ndgpa.GPA(3)


class TestGPAOnTwoSpaces(OperatorContract):
    key_structure = ndgpa.Sequence(30, downsample=4)

    @staticmethod
    def operator(heads: int, width: int) -> Operator:
        return ndgpa.GPA(2)


class TestNothing(OperatorContract):
    twice = False

    @staticmethod
    def operator(heads: int, width: int) -> Operator:
        return ndgpa.Nothing()
