"""Tables that follow from two structures alone, made once for each pair of them."""

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once, visible, without_empty_columns
from ndgpa.structures.base import SpatialStructure


def static_selection(rule: Rule, problem: Problem) -> Selection:
    """Answer for a rule that depends on the structures alone."""
    table = static_table(rule, problem)
    return Selection(table.int().expand(problem.query.shape[0], 1, -1, -1))


def static_table(
    rule: Rule | None, problem: Problem, with_overlapping: bool = False
) -> Int[Tensor, "C F"]:
    """List the blocks that a static rule names and a cell may see, each once.

    Args:
        rule: None names no block.
        with_overlapping: Whether to add the blocks that a causal cell can see in part.

    Returns:
        int64 ids, ascending, -1 in the empty slots, which are last.
    """
    causal = problem.causal

    def make(structure: SpatialStructure, key_structure: SpatialStructure) -> Tensor:
        tables = [structure.overlapping(key_structure)] if with_overlapping else []
        if rule is not None:
            named = rule.named_blocks(structure, key_structure)
            tables.append(visible(named, structure, key_structure, causal))
        table = each_once(torch.cat(tables, dim=1), key_structure.num_blocks)
        return without_empty_columns(table)

    name = rule, causal, with_overlapping
    return problem.structure.kept_with(problem.key_structure, name, make)
