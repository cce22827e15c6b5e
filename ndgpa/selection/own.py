"""The blocks that a cell's own sites are in."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.static import static_selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import lookup


@dataclass(frozen=True)
class Own(Rule):
    """Each cell reads the key blocks that hold its sites, and no others.

    Raises:
        ValueError: Queries and keys are not on the same sites.
    """

    @property
    def is_static(self) -> bool:
        return True

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        if key_structure is structure:
            return structure.cells
        _check_same_sites(structure, key_structure)
        return lookup(key_structure.block_of_site[:, None], structure.cell_sites)[..., 0]

    def select(self, problem: Problem) -> Selection:
        return static_selection(self, problem)


def _check_same_sites(structure: SpatialStructure, key_structure: SpatialStructure) -> None:
    if key_structure.num_sites != structure.num_sites:
        raise ValueError(
            "own blocks need queries and keys on the same sites; structure has "
            f"{structure.num_sites} sites but key_structure has {key_structure.num_sites}"
        )
