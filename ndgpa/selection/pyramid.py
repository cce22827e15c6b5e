"""A pyramid of blocks of blocks, and what each of its nodes stands for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.selection.coarse import Coarse
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.candidates import blocks_between


@dataclass(frozen=True)
class Nodes:
    """One level of a pyramid: what its nodes stand for."""

    structure: SpatialStructure  # its blocks are the nodes, its sites the next finer level's
    mean: Float[Tensor, "b hk N d"]
    least: Float[Tensor, "b hk N d"]
    greatest: Float[Tensor, "b hk N d"]
    seen: Float[Tensor, "#b N"]  # sites
    first: Int[Tensor, " N"] | None  # the earliest and the latest time
    last: Int[Tensor, " N"] | None

    def features(self, box: bool) -> Float[Tensor, "b hk N f"]:
        """What a query is multiplied with."""
        return torch.cat([self.greatest, self.least], dim=-1) if box else self.mean


def pyramid(
    coarse: Coarse,
    key_structure: SpatialStructure,
    causal: bool,
    levels: int,
    factor: int | tuple[int, ...],
) -> Iterator[Nodes]:
    """Yield the levels, finest first; the nodes of the finest are the key blocks.

    Raises:
        ValueError: A level has no fewer nodes than the one below it.
    """
    structure = key_structure
    first, last = structure.block_span if causal else (None, None)
    mean = coarse.key.detach()
    if coarse.bias is not None:
        mean = torch.cat([mean, coarse.bias.detach()[..., None]], dim=-1)
    nodes = Nodes(structure, mean, mean, mean, coarse.seen, first, last)
    yield nodes
    for level in range(1, levels):
        structure = nodes.structure.coarsened(factor)
        _check_shrinks(level, levels, nodes.structure.num_blocks, structure.num_blocks)
        nodes = _parents(nodes, structure)
        yield nodes


def _parents(nodes: Nodes, structure: SpatialStructure) -> Nodes:
    """The next coarser level."""
    seen = nodes.seen[:, None, :, None]
    total = structure.block_sums(nodes.seen[..., None])[..., 0]
    mean = structure.block_sums(seen * nodes.mean) / total.clamp(min=1)[:, None, :, None]
    least = _extreme(structure, nodes.least.masked_fill(seen == 0, torch.inf), torch.inf)
    greatest = _extreme(structure, nodes.greatest.masked_fill(seen == 0, -torch.inf), -torch.inf)
    nothing = (total == 0)[:, None, :, None]
    first = last = None
    if nodes.first is not None and nodes.last is not None:
        first, last = structure.span_of_blocks(nodes.first, nodes.last)
    return Nodes(
        structure,
        mean,
        least.masked_fill(nothing, 0),
        greatest.masked_fill(nothing, 0),
        total,
        first,
        last,
    )


def _extreme(structure: SpatialStructure, x: Tensor, empty: float) -> Tensor:
    """The least value in each block if an empty place counts as inf, the greatest if as -inf."""
    children = structure.by_block(x).masked_fill((structure.blocks < 0)[..., None], empty)
    return children.amin(dim=-2) if empty > 0 else children.amax(dim=-2)


def straddling(
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    factor: int | tuple[int, ...],
    level: int,
) -> Int[Tensor, "C E"]:
    """List the nodes of a level that are neither wholly past nor wholly later than a cell."""
    return structure.kept_with(
        key_structure,  # times are its own; another one may have parents that are equal
        ("straddling", factor, level),
        lambda own, keys: _straddling(own, keys, factor, level),
    )


def _straddling(
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    factor: int | tuple[int, ...],
    level: int,
) -> Int[Tensor, "C E"]:
    nodes, (first, last) = key_structure, key_structure.block_span
    for _ in range(level):
        nodes = nodes.coarsened(factor)
        first, last = nodes.span_of_blocks(first, last)
    now = structure.cell_span[0]
    return blocks_between(now, now, first, last, structure.cell_group, nodes.group)


def _check_shrinks(level: int, levels: int, before: int, after: int) -> None:
    if after >= before:
        raise ValueError(
            f"MultiLevel has {levels} levels, but level {level} would have {after} nodes, no fewer "
            f"than the {before} below it; use fewer levels or a larger factor"
        )
