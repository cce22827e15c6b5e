"""Blocks that are read whatever their relevance: those forced, and a causal cell's own present."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once
from ndgpa.selection.static import static_table


def always_read(force: Rule | None, problem: Problem, heads: int) -> Int[Tensor, "b hs C F"] | None:
    """List the blocks that each cell reads whatever their relevance, each once; None for none.

    Args:
        force: Names blocks to read. If causal, the blocks that a cell can see in part are added.
        heads: How many selections there are.

    Returns:
        int64 ids, ascending, -1 in the empty slots, which are last.
    """
    if force is None and not problem.causal:
        return None
    if force is None or force.is_static:
        table = static_table(force, problem, with_overlapping=problem.causal)
        if torch.onnx.is_in_onnx_export() and not table.shape[1]:
            return None  # onnxruntime does not reshape a table without columns
        return table.expand(problem.query.shape[0], heads, -1, -1)
    answer = force.select(problem)
    _check_answer(answer, heads)
    blocks = answer.blocks.long()
    if problem.causal:
        table = problem.structure.overlapping(problem.key_structure)
        blocks = torch.cat([blocks, table.expand(*blocks.shape[:2], -1, -1)], dim=-1)
    blocks = each_once(blocks, problem.key_structure.num_blocks)
    return blocks.repeat_interleave(heads // blocks.shape[1], dim=1)


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
