"""Blocks that are read whatever their relevance: those forced, and a causal cell's own present."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule, Union
from ndgpa.selection.candidates import overlapping
from ndgpa.selection.slots import each_once, visible, without_empty_columns
from ndgpa.structures.base import SpatialStructure


@dataclass(frozen=True)
class Overlapping(Rule):
    """Each cell reads the key blocks that it can see in part; for causal calls."""

    @property
    def is_static(self) -> bool:
        return True

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        return overlapping(structure, key_structure)

    def select(self, problem: Problem) -> Selection:
        return static_selection(self, problem)


def static_selection(rule: Rule, problem: Problem) -> Selection:
    """Answer for a rule that depends on the structures alone."""
    table = _static_table(rule, problem)
    return Selection(table.int().expand(len(problem.query), 1, -1, -1))


def always_read(force: Rule | None, problem: Problem, heads: int) -> Int[Tensor, "b hs C F"] | None:
    """List the blocks that each cell reads whatever their relevance, each once; -1 for none.

    Args:
        force: Names blocks to read; None names none. If causal, the blocks that a cell can see in
            part are added to them.
        heads: How many selections there are.
    """
    rules = [] if force is None else [force]
    if problem.causal:
        rules.append(Overlapping())
    if not rules:
        return None
    rule = rules[0] if len(rules) == 1 else Union(tuple(rules))
    if rule.is_static:
        return _static_table(rule, problem).expand(len(problem.query), heads, -1, -1)
    answer = rule.select(problem)
    _check_answer(answer, heads)
    blocks = each_once(answer.blocks.long(), problem.key_structure.num_blocks)
    return blocks.repeat_interleave(heads // blocks.shape[1], dim=1)


def _static_table(rule: Rule, problem: Problem) -> Int[Tensor, "C F"]:
    """The blocks that a static rule names and a cell may see; made once for each pair."""
    causal = problem.causal

    def make(structure: SpatialStructure, key_structure: SpatialStructure) -> Tensor:
        table = rule.named_blocks(structure, key_structure)
        table = visible(table, structure, key_structure, causal)
        return without_empty_columns(each_once(table, key_structure.num_blocks))

    return problem.structure.kept_with(problem.key_structure, (rule, causal), make)


def check_force(force: Any) -> None:
    if force is not None and not isinstance(force, Rule):
        raise TypeError(
            f"force must be a rule, such as Own() or Fixed((0,)) | Window(1); got {force!r}"
        )


def _check_answer(answer: Selection, heads: int) -> None:
    if answer.bias is not None:
        raise ValueError(
            "force cannot be a rule whose selection has a bias; use a union, as in TopK(8) | rule"
        )
    if heads % answer.blocks.shape[1]:
        raise ValueError(
            f"force selects for {answer.blocks.shape[1]} heads, but those that share a selection "
            f"make {heads}; use share='head'"
        )
