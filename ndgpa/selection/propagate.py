"""What a cell finds is near what the next cells find: blocks named by neighbours, on grids."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule, check_rules, once
from ndgpa.selection.slots import visible
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.boxes import beside
from ndgpa.structures.grid import Grid, check_same_rank, grid_shape
from ndgpa.structures.tables import lookup


@dataclass(frozen=True)
class Propagate(Rule):
    """Each cell reads what a rule names, what it names for the next cells, and what is beside it.

    In a picture, a volume or a sound neighbours look for what lies side by side. So what the next
    cell reads in a direction, moved back by as much as that cell is away, is likely to be read
    here, and so are the blocks beside those that were found. On a grid with r axes a cell has 4 r
    blocks more for each block that the rule names: candidates for a second look, and again,
    `Refine(Propagate(Refine(TopK(24), 6)), 12)` for one round.

    If causal, nothing comes from cells that are later. A block that the rule names keeps its bias,
    the others have none. Between grids of different sizes the move is by the same share of them.

    Source: the propagation of PatchMatch (Barnes et al. 2009), with blocks for patches.

    Args:
        rule: Names the blocks that are found so far.

    Raises:
        TypeError: `rule` is no rule, or queries or keys are not on a `Grid`.
        ValueError: The grids have different numbers of axes.
    """

    rule: Rule

    def __post_init__(self) -> None:
        check_rules("Propagate", (self.rule,))

    def select(self, problem: Problem) -> Selection:
        structure, keys = problem.structure, problem.key_structure
        axes = grid_shape("Propagate", "structure", structure)
        check_same_rank(axes, grid_shape("Propagate", "key_structure", keys))
        assert isinstance(structure, Grid)
        assert isinstance(keys, Grid)
        found = self.rule.select(problem)
        named = found.blocks.long()
        more = [*_beside(named, keys), *_of_next_cells(named, structure, keys, problem.causal)]
        added = visible(torch.cat(more, dim=3), structure, keys, problem.causal)
        bias = found.bias
        if bias is not None:
            bias = torch.cat([bias, bias.new_zeros(added.shape)], dim=3)
        return once(torch.cat([named, added], dim=3), bias, keys.num_blocks)


def _beside(named: Int[Tensor, "b hs C K"], keys: Grid) -> list[Int[Tensor, "b hs C K"]]:
    """The blocks beside those named, for each direction."""
    table = keys.kept_with(keys, ("beside", "blocks"), _next_blocks)
    return list(lookup(table, named).unbind(dim=4))


def _of_next_cells(
    named: Int[Tensor, "b hs C K"], structure: Grid, keys: Grid, causal: bool
) -> list[Int[Tensor, "b hs C K"]]:
    """What the next cell has named, for each direction, moved back to where a cell is."""
    cells = structure.kept_with(structure, ("beside", "cells"), _next_cells)
    moved = structure.kept_with(keys, "moved", _moved_blocks)
    found = []
    for way in range(cells.shape[1]):
        if causal and way == 2 * (structure.time_axis or 0):
            continue  # the cell that is later
        there = named[:, :, cells[:, way].clamp(min=0)]
        there = there.masked_fill(cells[:, way, None] < 0, -1)
        found.append(lookup(moved[:, way ^ 1, None], there)[..., 0])
    return found


def _next_cells(structure: SpatialStructure, _: SpatialStructure) -> Int[Tensor, "C ways"]:
    assert isinstance(structure, Grid)
    return beside(structure.grid_of_cells, (1,) * len(structure.shape), structure.on)


def _next_blocks(keys: SpatialStructure, _: SpatialStructure) -> Int[Tensor, "B ways"]:
    assert isinstance(keys, Grid)
    return beside(keys.grid_of_blocks, (1,) * len(keys.shape), keys.on)


def _moved_blocks(structure: SpatialStructure, keys: SpatialStructure) -> Int[Tensor, "B ways"]:
    """The key block that is as far from each as one cell is from the next."""
    assert isinstance(structure, Grid)
    assert isinstance(keys, Grid)
    each = zip(structure.cell_shape, keys.grid_of_blocks, structure.grid_of_blocks)
    steps = tuple((2 * cell * there + here) // (2 * here) for cell, there, here in each)
    return beside(keys.grid_of_blocks, steps, keys.on)
