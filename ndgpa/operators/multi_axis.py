"""Multi-axis attention (HiT): half of the heads within blocks, half across them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.tiles import Tiles, attend_in_tiles
from ndgpa.operators._heads import head_counts, heads_of_part
from ndgpa.operators.base import check_as_many_blocks, check_one_space, checked_call
from ndgpa.problem import check_scale
from ndgpa.structures import Grid, SpatialStructure
from ndgpa.structures.grid import PerAxis, grid_shape
from ndgpa.structures.tokens import check_no_tokens

# Queries of one tile; a larger group is split.
_QUERIES = 256


@dataclass(frozen=True)
class MultiAxis:
    """Attend within blocks in one half of the heads, across blocks in the other half.

    In the first half of the heads a site reads the sites of its own block. In the second half it
    reads the sites at its own place within every block, which on a grid form a lattice. So two
    layers connect every pair of sites. Keys of another structure need as many blocks, with as many
    places: block i of the queries reads block i of the keys.

    HiT shares one head of keys and values among all query heads by default ("multi-query"); for
    that, give key and value one head, or a layer `key_heads=1`.

    Source: Zhao et al. 2021, "Improved Transformer for High-Resolution GANs", Section 3.2.

    Args:
        block: Sites of a block along each axis of a grid; None means the blocks of the structure,
            which may be of any kind (within an irregular block, a site's place is its rank there).
        scale: Factor of the dot products; None means 1/sqrt(d).

    Raises:
        ValueError: The number of query heads is odd or 0, or the blocks do not pair up.
        TypeError: `block` is given and a structure is not a Grid.
        NotImplementedError: A structure has groups.
    """

    block: PerAxis | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        _check_block(self.block)
        check_scale(self.scale)

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        problem = checked_call(
            query,
            key,
            value,
            structure,
            key_structure,
            scale=self.scale,
            key_mask=key_mask,
            query_mask=query_mask,
        )
        _check_halves("MultiAxis", query.shape[1])
        counts = head_counts("MultiAxis", query.shape[1], 2)
        outs = [
            attend_in_tiles(
                *heads_of_part(query, key, value, counts, half),
                tiles,
                scale=problem.scale,
                key_mask=key_mask,
            )
            for half, tiles in enumerate(self._tiles(problem.structure, problem.key_structure))
        ]
        return torch.cat(outs, dim=1)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "2 n n_k"]:
        """Return which site reads which, within blocks, then across; see `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        sites, keys = structure.num_sites, key_structure.num_sites
        tiles = self._tiles(structure, key_structure.to(structure.device))
        return torch.stack([half.mask(sites, keys) for half in tiles])

    def _tiles(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> tuple[Tiles, Tiles]:
        check_one_space("MultiAxis", structure, key_structure)
        check_no_tokens("MultiAxis", structure, key_structure)
        if self.block is not None:
            structure = self._cut("structure", structure)
            key_structure = self._cut("key_structure", key_structure)
        _check_paired_blocks(structure, key_structure)
        blocks, key_blocks = structure.blocks, key_structure.blocks
        return _groups(blocks, key_blocks), _groups(blocks.mT, key_blocks.mT)

    def _cut(self, name: str, structure: SpatialStructure) -> SpatialStructure:
        """Cut a grid into the operator's own blocks."""
        assert self.block is not None
        shape = grid_shape("MultiAxis(block=...)", name, structure)
        return Grid(shape, self.block, device=structure.device)


def _groups(queries: Int[Tensor, "G x"], keys: Int[Tensor, "G y"]) -> Tiles:
    """Make tiles in which every query of a group reads every key of it."""
    size = min(_QUERIES, queries.shape[1])
    padded = F.pad(queries, (0, -queries.shape[1] % size), value=-1)
    cut = rearrange(padded, "g (c x) -> (g c) x", x=size)
    return Tiles(cut, keys.repeat_interleave(padded.shape[1] // size, dim=0))


def _check_block(block: Any) -> None:
    if block is not None and min(arguments.ints("block", block), default=0) < 1:
        raise ValueError(f"block must be at least 1; got {block}")


def _check_halves(who: str, heads: int) -> None:
    if heads % 2:
        raise ValueError(f"{who} needs an even number of query heads; got {heads}")


def _check_paired_blocks(structure: SpatialStructure, key_structure: SpatialStructure) -> None:
    check_as_many_blocks("MultiAxis", structure, key_structure)
    if structure.sites_per_block != key_structure.sites_per_block:
        raise ValueError(
            f"MultiAxis needs blocks of one size; structure has {structure.sites_per_block} sites "
            f"per block and key_structure {key_structure.sites_per_block}"
        )
