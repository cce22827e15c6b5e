"""Blocks named in advance: attention sinks, prefix tokens, any static pattern."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once, seen_blocks


@dataclass(frozen=True, eq=False)
class Fixed(Rule):
    """Each cell reads the key blocks named, whatever the queries and keys are.

    Args:
        blocks: Numbers of key blocks: a tuple of ints or an int tensor (K,) for all cells alike, or
            a tensor (C, K), (heads, C, K) or (batch, heads, C, K); -1 for an empty slot. Heads are
            1, those of key or those of query.

    Raises:
        TypeError, ValueError: The numbers do not fit the structures.
    """

    blocks: Int[Tensor, "*shape K"] | tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Tensor):
            object.__setattr__(self, "blocks", torch.tensor(self.blocks, dtype=torch.int64))
        _check_blocks(self.blocks)

    def select(self, problem: Problem) -> Selection:
        assert isinstance(self.blocks, Tensor)
        num_cells, num_blocks = problem.structure.num_cells, problem.key_structure.num_blocks
        _check_fits(self.blocks, num_cells, num_blocks)
        table = self.blocks.to(problem.query.device).long()
        table = table[(None,) * (4 - table.ndim)]
        table = table.expand(problem.query.shape[0], -1, num_cells, -1)
        table = each_once(seen_blocks(table, problem), num_blocks)
        return Selection(table.int())


def _check_blocks(blocks: Any) -> None:
    arguments.int_tensor("blocks", blocks)
    if not 1 <= blocks.ndim <= 4:
        raise ValueError(
            "blocks must have shape (width,), (cells, width), (heads, cells, width) or (batch, "
            f"heads, cells, width); got {tuple(blocks.shape)}"
        )


def _check_fits(blocks: Tensor, num_cells: int, num_blocks: int) -> None:
    if blocks.ndim > 1 and blocks.shape[-2] not in (1, num_cells):
        raise ValueError(
            f"Fixed has blocks for {blocks.shape[-2]} cells but structure has {num_cells}"
        )
    if blocks.is_cuda or torch.compiler.is_compiling():
        return
    if blocks.numel() and int(blocks.max()) >= num_blocks:
        raise ValueError(
            f"Fixed names block {int(blocks.max())} but key_structure has {num_blocks} blocks"
        )
