"""Tables of block ids: order, repetition, empty slots, and what a cell may see."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import has_values
from ndgpa.structures.base import SpatialStructure


def ascending(ids: Int[Tensor, "*batch K"], num_blocks: int) -> Int[Tensor, "*batch K"]:
    """In ascending order, empty slots last."""
    ordered = ids.masked_fill(ids < 0, num_blocks).sort(dim=-1).values
    return ordered.masked_fill(ordered == num_blocks, -1)


def each_once(table: Int[Tensor, "*batch K"], num_blocks: int) -> Int[Tensor, "*batch K"]:
    """In ascending order, each number once, empty slots last."""
    table = ascending(table, num_blocks)
    again = torch.zeros_like(table, dtype=torch.bool)
    again[..., 1:] = table[..., 1:] == table[..., :-1]
    return ascending(table.masked_fill(again, -1), num_blocks)


def without_empty_columns(table: Int[Tensor, "*batch K"]) -> Int[Tensor, "*batch k"]:
    """Cut to the longest row; empty slots must be last.

    It looks at values, so a GPU, which would be made to wait, a device without any, and a compiled
    graph, whose shapes are fixed, keep the width.
    """
    if not has_values(table) or table.shape[-1] == 0:
        return table
    used = (table >= 0).flatten(0, -2).any(dim=0)
    return table[..., : max(1, int(used.sum()))]


def visible(
    table: Int[Tensor, "*batch C F"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    causal: bool,
) -> Int[Tensor, "*batch C F"]:
    """Empty the slots of blocks of another group than the cell's, or wholly later."""
    blocks, hidden = table.clamp(min=0).long(), table < 0  # ONNX gathers by int64
    if structure.cell_group is not None and key_structure.group is not None:
        hidden = hidden | (key_structure.group[blocks] != structure.cell_group[:, None])
    if causal:
        later = key_structure.block_span[0][blocks] > structure.cell_span[1][:, None]
        hidden = hidden | later
    return table.masked_fill(hidden, -1)


def without_blocks(
    scores: Float[Tensor, "*batch B_k"], always: Int[Tensor, "*batch F"]
) -> Float[Tensor, "*batch B_k"]:
    """Scores in which the blocks that are read anyway are no candidates."""
    places = scores.shape[-1] + 1  # one more, for the empty slots
    taken = torch.zeros(*scores.shape[:-1], places, dtype=torch.bool, device=scores.device)
    taken = taken.scatter(-1, always % places, value=True)[..., :-1]
    return scores.masked_fill(taken, -torch.inf)
