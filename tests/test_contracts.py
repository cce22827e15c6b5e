"""The contracts notice what is wrong: a structure, a rule or an operator that breaks them fails."""

from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import ndgpa
from ndgpa.testing import OperatorContract, RuleContract, StructureContract, draw


class OneWay(ndgpa.Grid):
    """A grid whose cells are near those after them only."""

    def near_cells(self, radius: Any) -> torch.Tensor:
        near = super().near_cells(radius)
        return near.masked_fill(near < self.cells[:, :1], -1)


class Shrinking(ndgpa.Grid):
    """A grid on which less is near at a larger radius."""

    def near_cells(self, radius: Any) -> torch.Tensor:
        return super().near_cells(2 - radius)


class Whole(ndgpa.Grid):
    """A grid whose mean forgets the last site of each block."""

    def downsample(self, x: torch.Tensor) -> torch.Tensor:
        return self.by_block(x)[..., :-1, :].mean(dim=-2)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (OneWay, "test_a_cell_is_near_those_that_are_near_it"),
        (Shrinking, "test_blocks_near_a_cell_are_its_own_and_more_with_the_radius"),
        (Whole, "test_downsample_is_the_mean_over_the_upsampled_sites"),
    ],
)
def test_a_structure_that_breaks_a_law_fails(kind: Any, law: str) -> None:
    class Contract(StructureContract):
        def structures(self) -> st.SearchStrategy[ndgpa.SpatialStructure]:
            return st.just(kind((9,), 2, 1))

    with pytest.raises(AssertionError):
        getattr(Contract(), law)()


class Twice(ndgpa.TopK):
    """A rule that names its blocks twice."""

    def select(self, problem: Any) -> ndgpa.Selection:
        blocks = super().select(problem).blocks
        return ndgpa.Selection(torch.cat([blocks, blocks], dim=-1))


def test_a_rule_that_names_a_block_twice_fails() -> None:
    class Contract(RuleContract):
        def rules(self, problem: draw.Problem) -> st.SearchStrategy[ndgpa.Rule]:
            return st.just(Twice(1))

    with pytest.raises(AssertionError):
        Contract().test_slots_hold_existing_blocks_once_each()


def test_an_operator_that_reads_masked_keys_fails() -> None:
    def blind(query: Any, key: Any, value: Any, *spaces: Any, **_: Any) -> torch.Tensor:
        return ndgpa.Full()(query, key, value, *spaces)

    class Contract(OperatorContract):
        def operator(self, heads: int, width: int) -> Any:
            return blind

    with pytest.raises(AssertionError):
        Contract().test_masked_keys_do_not_exist()
