"""The blocks around each cell, whatever they hold."""

from dataclasses import dataclass
from typing import Any

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once, seen_blocks, without_empty_columns
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

    def select(self, problem: Problem) -> Selection:
        _check_one_structure("Window", problem.structure, problem.key_structure)
        table = seen_blocks(problem.structure.near_cells(self.radius), problem)
        table = without_empty_columns(each_once(table, problem.structure.num_blocks))
        return Selection(table.int().expand(problem.query.shape[0], 1, -1, -1))


def _check_one_structure(who: str, structure: SpatialStructure, key_structure: Any) -> None:
    if key_structure is not structure:
        raise ValueError(f"{who} needs queries and keys on one structure")
