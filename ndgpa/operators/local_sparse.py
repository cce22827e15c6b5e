"""Your Local GAN's sparse attention: two sparse steps that together carry all information."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.tiles import Tiles, attend_in_tiles
from ndgpa.operators._heads import head_counts, heads_of_part
from ndgpa.operators.base import check_one_space, checked_call
from ndgpa.problem import check_scale
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import check_same_rank, grid_shape

PATTERNS = ("ltr", "rtl", "strided", "fixed")
ORDERS = ("esa", "raster")
RESIZES = ("geometric", "official")


@dataclass(frozen=True)
class LocalSparse:
    """Sparse patterns of one dimension, laid over a space by enumerating its sites.

    The n sites are numbered in some order and cut into runs of `stride`, s. A pattern is two
    steps; the heads are split evenly over them, and over the patterns if there are several, in the
    order step 1, step 2 of the first pattern, step 1 of the second, and so on. Site i reads

    * "ltr": in step 1 the sites of its run up to itself; in step 2 the last site of every run, and
      itself.
    * "rtl": in step 1 the sites of its run from itself on; in step 2 the first site of every run,
      and itself.
    * "strided" (Sparse Transformer): in step 1 the s sites before it and itself; in step 2 all
      sites j with j = i modulo s.
    * "fixed" (Sparse Transformer, causal): step 1 of "ltr"; of its step 2 the sites up to i.

    After both steps of "ltr" or "rtl" every site has heard of every other ("full information").
    The released code leaves a run at the end that is shorter than s without a site in step 2, so
    that nobody hears of it; `mend` gives it its last (first) site like any other.

    Where queries have a space of their own, the pattern is that of the keys' and a query reads what
    some key's site would: with "geometric" that under its centre, with "official" (the released
    code) that of number q modulo n, which on images is far from it.

    Source: Daras et al. 2020, "Your Local GAN: Designing Two Dimensional Local Attention Mechanisms
    for Generative Models"; Child et al. 2019, "Generating Long Sequences with Sparse Transformers".

    Args:
        pattern: One or several of "ltr", "rtl", "strided", "fixed".
        order: "esa" numbers the sites of a grid by their Manhattan distance from the first, those
            of equal distance in raster order; "raster" takes them as they are, on any structure.
        stride: Sites of a run; None means floor(sqrt(n)).
        mend: Whether a shorter run at the end takes part in step 2 of "ltr" and "rtl".
        resize: Which row of the pattern a query on another space follows.
        scale: Factor of the dot products; None means 1/sqrt(d). The original's is 1.

    Raises:
        ValueError: An unknown word, a stride above n, or heads that do not split over the steps.
        TypeError: The order is "esa", or queries have another space, and a structure is no Grid.
        NotImplementedError: A structure batches several spaces as one.
    """

    pattern: str | tuple[str, ...] = ("rtl", "ltr")
    order: str = "esa"
    stride: int | None = None
    mend: bool = True
    resize: str = "geometric"
    scale: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", (self.pattern,))
        _check_patterns(self.pattern, PATTERNS)
        arguments.one_of("order", self.order, ORDERS)
        arguments.one_of("resize", self.resize, RESIZES)
        check_scale(self.scale)
        if self.stride is not None:
            arguments.positive_count("stride", self.stride)

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
        steps = 2 * len(self.pattern)
        _check_heads_over_steps("LocalSparse", query.shape[1], steps)
        counts = head_counts("LocalSparse", query.shape[1], steps)
        outs = [
            attend_in_tiles(
                *heads_of_part(query, key, value, counts, step),
                tiles,
                scale=problem.scale,
                key_mask=key_mask,
            )
            for step, tiles in enumerate(self._tiles(problem.structure, problem.key_structure))
        ]
        return torch.cat(outs, dim=1)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "steps n n_k"]:
        """Step after step, pattern after pattern; as `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        sites, keys = structure.num_sites, key_structure.num_sites
        tiles = self._tiles(structure, key_structure)
        return torch.stack([step.mask(sites, keys) for step in tiles])

    def _tiles(self, structure: SpatialStructure, key_structure: SpatialStructure) -> list[Tiles]:
        check_one_space("LocalSparse", structure, key_structure)
        shape, key_shape = self._shapes(structure, key_structure)
        n = math.prod(key_shape)
        stride = math.isqrt(n) if self.stride is None else self.stride
        _check_stride(stride, n)
        tiles = []
        for pattern in self.pattern:
            for step in (1, 2):
                queries, keys, seen = local_sparse_tables(
                    list(shape),
                    list(key_shape),
                    [step, stride, int(self.mend)],
                    pattern,
                    self.order,
                    self.resize,
                    structure.device,
                )
                tiles.append(Tiles(queries, keys, seen=seen))
        return tiles

    def _shapes(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of grids; the number of sites where a grid does not matter."""
        same = key_structure is structure
        if self.order == "raster" and (same or self.resize == "official"):
            return (structure.num_sites,), (key_structure.num_sites,)
        shape = grid_shape("LocalSparse", "structure", structure)
        key_shape = grid_shape("LocalSparse", "key_structure", key_structure)
        if self.resize == "geometric":
            check_same_rank(shape, key_shape)
        return shape, key_shape


@torch.library.custom_op(
    "ndgpa::local_sparse_tables", mutates_args=(), device_types=("cpu", "cuda", "meta")
)
def local_sparse_tables(
    shape: list[int],
    key_shape: list[int],
    numbers: list[int],
    pattern: str,
    order: str,
    resize: str,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tables of `Tiles`: queries, keys, seen. `numbers` are step, stride and mend."""
    sizes = (tuple(x) for x in (shape, key_shape, numbers))
    tables = _tables(*sizes, pattern, order, resize)
    return tuple(torch.from_numpy(x.copy()).to(device) for x in tables)  # type: ignore[return-value]


@local_sparse_tables.register_fake
def _(
    shape: list[int],
    key_shape: list[int],
    numbers: list[int],
    pattern: str,
    order: str,
    resize: str,
    device: torch.device,
) -> tuple[Tensor, ...]:
    sizes = (tuple(int(size) for size in x) for x in (shape, key_shape, numbers))
    return tuple(
        torch.empty(x.shape, dtype=getattr(torch, x.dtype.name), device=device)
        for x in _tables(*sizes, pattern, order, resize)
    )


Array = NDArray[Any]


@functools.lru_cache(maxsize=16)
def _tables(
    shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    numbers: tuple[int, ...],
    pattern: str,
    order: str,
    resize: str,
) -> tuple[Array, Array, Array]:
    step, stride, mend = numbers
    sites = enumerate_sites(key_shape, order)
    follow = _follow_geometric if resize == "geometric" else _follow_official
    slots = _queries_of(sites, follow(shape, key_shape))
    if step == 1 and pattern == "strided":
        return _window(sites, slots, stride)
    if step == 1:
        return _runs(sites, slots, stride, backward=pattern == "rtl")
    if pattern == "strided":
        return _residues(sites, slots, stride)
    return _representatives(sites, slots, stride, pattern, bool(mend))


def enumerate_sites(shape: tuple[int, ...], order: str) -> Array:
    """The sites of a grid in the order of their numbers.

    "esa" (enumerate, shift, apply) sorts them by Manhattan distance from the first site, and those
    of equal distance in raster order.
    """
    sites = np.arange(math.prod(shape))
    if order == "raster":
        return sites
    distance = np.indices(shape).sum(axis=0).reshape(-1)
    return np.argsort(distance, kind="stable")


def _follow_geometric(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> Array:
    """For each query, the key under its centre."""
    axes = [
        (2 * np.arange(n) + 1) * n_k // (2 * n) for n, n_k in zip(shape, key_shape, strict=True)
    ]
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), key_shape).reshape(-1)


def _follow_official(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> Array:
    return np.arange(math.prod(shape)) % math.prod(key_shape)


def _queries_of(sites: Array, followed: Array) -> Array:
    """The queries that follow each number, (n, most of them), -1 for an empty place."""
    number = np.empty_like(sites)
    number[sites] = np.arange(len(sites))
    number_of_query = number[followed]
    order = np.argsort(number_of_query, kind="stable")
    members = np.bincount(number_of_query, minlength=len(sites))
    place = np.arange(len(order)) - np.repeat(np.cumsum(members) - members, members)
    slots = np.full((len(sites), members.max()), -1)
    slots[number_of_query[order], place] = order
    return slots


def _cut(rows: Array, size: int) -> Array:
    """Runs of `size` rows as one row each; -1 after the last."""
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)), constant_values=-1)
    return padded.reshape(-1, size * rows.shape[1])


def _repeat(seen: Array, slots: Array) -> Array:
    """A pattern of numbers as one of the queries that follow them."""
    return np.repeat(seen, slots.shape[1], axis=0)[None]


def _runs(sites: Array, slots: Array, stride: int, backward: bool) -> tuple[Array, Array, Array]:
    """Step 1 of all but "strided": the part of one's own run."""
    seen = np.tri(stride, dtype=bool)
    seen = seen.T if backward else seen
    return _cut(slots, stride), _cut(sites[:, None], stride), _repeat(seen, slots)


def _window(sites: Array, slots: Array, stride: int) -> tuple[Array, Array, Array]:
    """Step 1 of "strided": the run before and the own, less what is too far before or after."""
    own = _cut(sites[:, None], stride)
    before = np.concatenate([np.full((1, stride), -1), own[:-1]])
    ahead = np.arange(2 * stride) - np.arange(stride)[:, None]
    seen = (ahead >= 0) & (ahead <= stride)
    return _cut(slots, stride), np.concatenate([before, own], axis=1), _repeat(seen, slots)


def _residues(sites: Array, slots: Array, stride: int) -> tuple[Array, Array, Array]:
    """Step 2 of "strided": the numbers of one's own residue class."""
    keys = _cut(sites[:, None], stride).T.copy()
    width = slots.shape[1]
    queries = _cut(slots, stride).reshape(-1, stride, width).swapaxes(0, 1).reshape(stride, -1)
    return queries, keys, np.ones((1, 1, 1), dtype=bool)


def _representatives(
    sites: Array, slots: Array, stride: int, pattern: str, mend: bool
) -> tuple[Array, Array, Array]:
    """Step 2 of the others: one site of every run, and oneself."""
    n, runs = len(sites), -(-len(sites) // stride)
    first = np.arange(0, n, stride)
    last = np.minimum(first + stride, n) - 1
    chosen = first if pattern == "rtl" else last
    if n % stride and not mend:
        chosen = chosen[:-1]
    read = np.broadcast_to(sites[chosen], (runs, len(chosen)))
    themselves = sites.copy()
    if pattern == "fixed":  # of the runs before one's own only
        later = np.arange(len(chosen)) >= np.arange(runs)[:, None]
        read = np.where(later, -1, read)
    else:
        themselves[chosen] = -1  # they are read already
    keys = np.concatenate([read, _cut(themselves[:, None], stride)], axis=1)
    seen = np.concatenate(
        [np.ones((stride, len(chosen)), dtype=bool), np.eye(stride, dtype=bool)], axis=1
    )
    return _cut(slots, stride), keys, _repeat(seen, slots)


def _check_patterns(patterns: Any, known: Any) -> None:
    if len(patterns) == 0:
        raise ValueError("pattern is empty; name at least one")
    for pattern in patterns:
        arguments.one_of("pattern", pattern, known)


def _check_stride(value: int, n: int) -> None:
    if value > n:
        raise ValueError(f"stride {value} is larger than the {n} sites of key_structure")


def _check_heads_over_steps(who: str, heads: int, steps: int) -> None:
    if heads == 0 or heads % steps:
        raise ValueError(
            f"{who} needs a multiple of {steps} query heads, as many for each step; got {heads}"
        )
