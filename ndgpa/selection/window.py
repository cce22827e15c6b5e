"""The blocks around each cell, whatever they hold."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.static import static_selection
from ndgpa.structures.base import SpatialStructure


@dataclass(frozen=True)
class Window(Rule):
    """Each cell reads the key blocks within a radius of it, its own among them.

    Args:
        radius: In blocks, measured from the nearest block of the cell; on a grid along every axis,
            one int for all or one for each.

    Raises:
        ValueError: Queries and keys are not on one structure, or the radius does not fit it.
        NotImplementedError: The structure does not know what is near.
    """

    radius: int | tuple[int, ...]

    @property
    def is_static(self) -> bool:
        return True

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        _check_one_structure(structure, key_structure)
        return structure.near_cells(self.radius)

    def select(self, problem: Problem) -> Selection:
        return static_selection(self, problem)


def _check_one_structure(structure: SpatialStructure, key_structure: SpatialStructure) -> None:
    if key_structure is not structure:
        raise ValueError("Window needs queries and keys on one structure")
