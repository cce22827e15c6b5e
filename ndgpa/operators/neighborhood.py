"""Neighborhood attention (NAT, StyleNAT): each site reads a window around itself."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa._ops import constant
from ndgpa.attention.tiles import Tiles, attend_in_tiles
from ndgpa.operators.base import checked_call
from ndgpa.problem import check_scale
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import PerAxis, check_same_rank, grid_shape


class Neighborhood(nn.Module):
    """Read exactly `kernel` keys along every axis, `dilation` apart, around each query.

    Along an axis of L keys, with dilation D, a query at position p reads only keys at positions
    congruent to p modulo D. Number those 0 to m - 1; the query's own number is i = p // D. It reads
    start to start + kernel - 1, where start is i - kernel // 2, clamped to [0, m - kernel]: at a
    border the window shifts inwards and keeps its size. On a grid the window is the product over
    the axes. Keys may lie on a grid of another size: query q of an axis of L_q then stands at
    p = floor((q + 1/2) L / L_q), the key under its centre.

    Source: Hassani et al. 2023, "Neighborhood Attention Transformer"; the border rule is that of
    the library NATTEN; relative bias as in Walton et al. 2022, "StyleNAT".

    Args:
        kernel: Keys along each axis; one int serves all axes.
        dilation: Steps from one key to the next along each axis.
        rel_bias: Learn a bias for each head and relative position, (heads, 2 kernel - 1, ...),
            indexed by (key - query) / dilation + kernel - 1 along each axis. Needs `heads`, and
            `kernel` as a tuple.
        heads: Query heads, for `rel_bias`.
        scale: Factor of the dot products; None means 1/sqrt(d).

    Raises:
        ValueError: kernel x dilation exceeds an axis of the keys, or the grids differ in rank.
        TypeError: A structure is not a Grid.
    """

    def __init__(
        self,
        kernel: PerAxis,
        dilation: PerAxis = 1,
        rel_bias: bool = False,
        heads: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        _check_options(kernel, dilation, rel_bias, heads)
        check_scale(scale)
        self.kernel, self.dilation, self.scale = kernel, dilation, scale
        self.rel_bias: nn.Parameter | None = None
        if rel_bias:
            assert isinstance(kernel, tuple)
            assert heads is not None
            self.rel_bias = nn.Parameter(torch.empty(heads, *(2 * k - 1 for k in kernel)))
            nn.init.trunc_normal_(self.rel_bias, std=0.02)

    def forward(
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
        if self.rel_bias is not None:
            _check_rel_bias(self.rel_bias, query)
        return attend_in_tiles(
            query,
            key,
            value,
            self._tiles(problem.structure, problem.key_structure),
            scale=problem.scale,
            key_mask=key_mask,
            bias=None if self.rel_bias is None else self.rel_bias.flatten(1),
        )

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "1 n n_k"]:
        """Return which site reads which; see `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        tiles = self._tiles(structure, key_structure)
        return tiles.mask(structure.num_sites, key_structure.num_sites)[None]

    def extra_repr(self) -> str:
        return (
            f"kernel={self.kernel}, dilation={self.dilation}, rel_bias={self.rel_bias is not None}"
        )

    def _tiles(self, structure: SpatialStructure, key_structure: SpatialStructure) -> Tiles:
        shape = grid_shape("Neighborhood", "structure", structure)
        key_shape = grid_shape("Neighborhood", "key_structure", key_structure)
        kernel, dilation = _windows(self.kernel, self.dilation, shape, key_shape)
        biased = self.rel_bias is not None
        sizes = list(shape), list(key_shape), list(kernel), list(dilation)
        queries, keys, pattern, seen, offset = constant(
            lambda: neighborhood_tables(*sizes, biased, structure.device)
        )
        return Tiles(queries, keys, pattern, seen, offset if biased else None)


@torch.library.custom_op(
    "ndgpa::neighborhood_tables", mutates_args=(), device_types=("cpu", "cuda", "meta")
)
def neighborhood_tables(
    shape: list[int],
    key_shape: list[int],
    kernel: list[int],
    dilation: list[int],
    biased: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make the tables of `Tiles`: queries, keys, pattern, seen, offset (empty unless `biased`)."""
    tables = _tables(*map(_ints, (shape, key_shape, kernel, dilation)), biased)
    return tuple(torch.from_numpy(x.copy()).to(device) for x in tables)  # type: ignore[return-value]


@neighborhood_tables.register_fake
def _(
    shape: list[int],
    key_shape: list[int],
    kernel: list[int],
    dilation: list[int],
    biased: bool,
    device: torch.device,
) -> tuple[Tensor, ...]:
    tables = _tables(*map(_ints, (shape, key_shape, kernel, dilation)), biased)
    return tuple(
        torch.empty(x.shape, dtype=getattr(torch, x.dtype.name), device=device) for x in tables
    )


def _ints(sizes: list[int]) -> tuple[int, ...]:
    """Make plain ints of sizes that a compiler may trace as symbols."""
    return tuple(int(size) for size in sizes)


Array = NDArray[Any]

# Queries along each axis of a tile, by the rank of the grid: about 64 in all.
_TILE = {1: 64, 2: 8, 3: 4}


@functools.lru_cache(maxsize=32)
def _tables(
    shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    biased: bool,
) -> tuple[Array, ...]:
    """Make the tiles of a grid: every table is the product of those of the axes."""
    width = _TILE.get(len(shape), 2)
    axes = [_axis(*sizes, width) for sizes in zip(shape, key_shape, kernel, dilation)]
    queries = _product([a.queries for a in axes], shape)
    keys = _product([a.keys for a in axes], key_shape)
    pattern = _product([a.pattern[:, None] for a in axes], tuple(len(a.offset) for a in axes))[:, 0]
    pairs = [a.offset.reshape(len(a.offset), -1) for a in axes]
    offset = _product(pairs, tuple(2 * k - 1 for k in kernel))
    places = [size for a in axes for size in a.offset.shape[1:]]
    rank = len(axes)
    offset = offset.reshape(-1, *places).transpose(
        0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2)
    )
    offset = offset.reshape(len(offset), queries.shape[1], keys.shape[1])
    seen = offset >= 0
    offset = np.maximum(offset, 0).astype(np.int32) if biased else np.empty((0, 0, 0), np.int32)
    return queries, keys, pattern, seen, offset


@dataclass(frozen=True)
class _Axis:
    queries: Array  # (T, X), -1 for an empty place
    keys: Array  # (T, Y), -1 for an empty place
    pattern: Array  # (T,)
    offset: Array  # (P, X, Y): (key - query) / dilation + kernel - 1, -1 for a hidden pair


def _axis(size: int, key_size: int, kernel: int, dilation: int, width: int) -> _Axis:
    """Make the tiles of one axis: runs of about `width` queries of one residue class."""
    position = (2 * np.arange(size) + 1) * key_size // (2 * size)
    residue, place = position % dilation, position // dilation
    count = -(-(key_size - residue) // dilation)  # places of the residue class
    start = np.clip(place - kernel // 2, 0, count - kernel)

    order = np.argsort(residue, kind="stable")
    members = np.bincount(residue, minlength=dilation)
    width = _even_width(int(members.max()), width)
    rank = np.arange(size) - (np.cumsum(members) - members)[residue[order]]
    tile = np.cumsum(rank % width == 0) - 1
    queries = np.full((tile[-1] + 1, width), -1)
    queries[tile, rank % width] = order

    empty = queries < 0
    first = start[queries[:, 0]]  # starts never fall within a class
    last = np.where(empty, 0, start[queries]).max(axis=1)
    reach = np.arange(int((last - first).max()) + kernel)
    key_place = first[:, None] + reach
    keys = key_place * dilation + residue[queries[:, 0]][:, None]
    keys = np.where(key_place < last[:, None] + kernel, keys, -1)

    ahead = key_place[:, None] - start[queries][:, :, None]
    seen = (ahead >= 0) & (ahead < kernel) & ~empty[:, :, None]
    offset = np.where(seen, key_place[:, None] - place[queries][:, :, None] + kernel - 1, -1)
    offset, pattern = np.unique(offset, axis=0, return_inverse=True)
    return _Axis(queries, keys, pattern.reshape(-1), offset)


def _even_width(members: int, width: int) -> int:
    """Return the smallest width that gives as many runs."""
    return math.ceil(members / math.ceil(members / width))


def _product(tables: list[Array], sizes: tuple[int, ...]) -> Array:
    """Combine the tables of the axes: every combination of rows, entries as raster numbers.

    tables[a] is (rows, entries) of numbers below sizes[a]; -1 anywhere gives -1.
    """
    total, hidden = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=bool)
    for table, size in zip(tables, sizes):
        shape = (len(total) * len(table), -1)
        total = (total[:, None, :, None] * size + table[None, :, None, :]).reshape(shape)
        hidden = (hidden[:, None, :, None] | (table < 0)[None, :, None, :]).reshape(shape)
    return np.where(hidden, -1, total)


def _check_options(kernel: Any, dilation: Any, rel_bias: bool, heads: int | None) -> None:
    for name, value in (("kernel", kernel), ("dilation", dilation)):
        sizes = arguments.ints(name, value)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if rel_bias and (heads is None or not isinstance(kernel, tuple)):
        raise ValueError("rel_bias=True needs heads, and a kernel given as one int per axis")
    if heads is not None:
        arguments.positive_count("heads", heads)


def _windows(
    kernel: Any, dilation: Any, shape: tuple[int, ...], key_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return kernel and dilation, one int per axis each, that fit the grid of the keys."""
    check_same_rank(shape, key_shape)
    kernels = _one_per_axis("kernel", kernel, len(shape))
    dilations = _one_per_axis("dilation", dilation, len(shape))
    for axis, (k, d, size) in enumerate(zip(kernels, dilations, key_shape)):
        if k * d > size:
            raise ValueError(
                f"kernel {k} with dilation {d} covers {k * d} sites but axis {axis} of the keys "
                f"has {size}; kernel x dilation must not exceed it"
            )
    return kernels, dilations


def _one_per_axis(name: str, value: Any, rank: int) -> tuple[int, ...]:
    entries = arguments.ints(name, value) * (rank if isinstance(value, int) else 1)
    if len(entries) != rank:
        raise ValueError(f"{name} has {len(entries)} entries but the grid has {rank} axes")
    return entries


def _check_rel_bias(rel_bias: Tensor, query: Tensor) -> None:
    if rel_bias.shape[0] != query.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads but the relative bias has {rel_bias.shape[0]}"
        )
    if rel_bias.device != query.device:
        raise ValueError(
            f"the relative bias is on {rel_bias.device} but query is on {query.device}"
        )
