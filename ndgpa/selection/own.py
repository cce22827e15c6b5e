"""The blocks that a cell's own sites are in."""

from dataclasses import dataclass

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once, seen_blocks
from ndgpa.selection.top_k import forced_blocks


@dataclass(frozen=True)
class Own(Rule):
    """Each cell reads the key blocks that hold its sites, and no others.

    Raises:
        ValueError: Queries and keys are not on the same sites.
    """

    def select(self, problem: Problem) -> Selection:
        own = forced_blocks(("own",), problem.structure, problem.key_structure)
        table = each_once(seen_blocks(own, problem), problem.key_structure.num_blocks)
        return Selection(table.int().expand(problem.query.shape[0], 1, -1, -1))
