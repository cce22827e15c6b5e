"""Many spaces as one: ragged batches."""

from collections.abc import Sequence
from typing import Any

import torch

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure, check_structure
from ndgpa.structures.clusters import Clusters


def disjoint(structures: Sequence[SpatialStructure]) -> Clusters:
    """Make one structure of many spaces that do not see each other.

    The sites of the first space come first, then those of the second, and so on: concatenate the
    features in the same order. Attention over the whole equals attention over each on its own, and
    a rule that keeps k blocks keeps k in each space (all of a space that has fewer).

    Args:
        structures: At least one, on one device; of any kind, and of different kinds. All have a
            time or none has. A structure that has groups already keeps them apart.

    Raises:
        ValueError: There is none, they are on different devices, or only some have a time.
        TypeError: An entry is no structure.
        NotImplementedError: A structure has special tokens.
    """
    structures = list(structures)
    _check_structures(structures)
    block_of_site, cell_of_block, group, time = [], [], [], []
    blocks = cells = groups = 0
    for structure in structures:
        block_of_site.append(structure.block_of_site + blocks)
        cell_of_block.append(structure.cell_of_block + cells)
        own = structure.group
        own = (
            torch.zeros_like(cell_of_block[-1])
            if own is None
            else own.unique(return_inverse=True)[1]
        )
        group.append(own + groups)
        blocks += structure.num_blocks
        cells += structure.num_cells
        groups += int(own.max()) + 1
        if structure.time is not None:
            time.append(structure.time)
    return Clusters(
        torch.cat(block_of_site),
        torch.cat(cell_of_block),
        torch.cat(time) if time else None,
        torch.cat(group),
    )


def _check_structures(structures: Sequence[Any]) -> None:
    if not structures:
        raise ValueError("disjoint got no structures; it needs at least one")
    for place, structure in enumerate(structures):
        check_structure(f"structure {place}", structure)
        if structure.inner is not structure:
            raise NotImplementedError(
                f"structure {place} has special tokens; spaces with tokens cannot be batched as one"
            )
    if len({structure.device for structure in structures}) > 1:
        devices = arguments.listed(structure.device for structure in structures)
        raise ValueError(f"the structures are on different devices: {devices}")
    timed = [structure.time is not None for structure in structures]
    if any(timed) and not all(timed):
        raise ValueError(
            f"structure {timed.index(False)} has no time but structure {timed.index(True)} has"
        )
