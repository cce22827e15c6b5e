"""Blocks named in advance: attention sinks, prefix tokens, any static pattern."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.slots import each_once, visible
from ndgpa.selection.static import static_selection
from ndgpa.structures.base import SpatialStructure


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
        if isinstance(self.blocks, Tensor):
            _check_blocks(self.blocks)
            return
        table = torch.tensor(self.blocks, dtype=torch.int64)
        _check_blocks(table)
        object.__setattr__(self, "blocks", tuple(table.tolist()) if table.ndim == 1 else table)

    def __eq__(self, other: object) -> bool:
        """Compare tuples by their numbers; a tensor is equal to itself alone."""
        return isinstance(other, Fixed) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> int | tuple[int, ...]:
        return self.blocks if isinstance(self.blocks, tuple) else id(self.blocks)

    @property
    def is_static(self) -> bool:
        """Tuples are; a tensor may be another one at each call, and is not kept."""
        return isinstance(self.blocks, tuple)

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        assert isinstance(self.blocks, tuple)
        _check_exists(max(self.blocks, default=-1), key_structure.num_blocks)
        table = torch.tensor(self.blocks, dtype=torch.int64, device=structure.device)
        return table.expand(structure.num_cells, -1)

    def select(self, problem: Problem) -> Selection:
        if not isinstance(self.blocks, Tensor):
            return static_selection(self, problem)
        structure, key_structure = problem.structure, problem.key_structure
        _check_fits(self.blocks, structure.num_cells, key_structure.num_blocks)
        table = self.blocks.to(problem.query.device).long()
        table = table[(None,) * (4 - table.ndim)]
        table = table.expand(problem.query.shape[0], -1, structure.num_cells, -1)
        table = visible(table, structure, key_structure, problem.causal)
        return Selection(each_once(table, key_structure.num_blocks).int())


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
    _check_exists(int(blocks.max()) if blocks.numel() else -1, num_blocks)


def _check_exists(largest: int, num_blocks: int) -> None:
    if largest >= num_blocks:
        raise ValueError(f"Fixed names block {largest} but key_structure has {num_blocks} blocks")
