"""Sparse attention of Your Local GAN: two steps that together reach every site."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import constant
from ndgpa.attention.tiles import Tiles, attend_in_tiles
from ndgpa.operators._heads import head_counts, heads_of_part
from ndgpa.operators.base import check_one_space, checked_call
from ndgpa.operators.sparse_patterns import local_sparse_tables
from ndgpa.problem import check_scale
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import check_same_rank, grid_shape
from ndgpa.structures.tokens import check_no_tokens

Pattern = Literal["ltr", "rtl", "strided", "fixed"]
PATTERNS = get_args(Pattern)
ORDERS = ("esa", "raster")
RESIZES = ("geometric", "official")


@dataclass(frozen=True)
class LocalSparse:
    """Apply one-dimensional sparse patterns to a space by enumerating its sites.

    The n sites are numbered in some order and cut into runs of s = `stride` sites. A pattern has
    two steps. The heads are split evenly: step 1 of the first pattern, step 2 of the first, step 1
    of the second, and so on. Site i reads

    * "ltr": in step 1 the sites of its run up to itself; in step 2 the last site of every run, and
      itself.
    * "rtl": in step 1 the sites of its run from itself on; in step 2 the first site of every run,
      and itself.
    * "strided" (Sparse Transformer): in step 1 itself and the s sites before it; in step 2 all
      sites j with j = i modulo s.
    * "fixed" (Sparse Transformer, causal): as "ltr", but in step 2 only sites up to i.

    After both steps of "ltr" or "rtl" every site has reached every other ("full information"). In
    the released code a last run shorter than s has no site in step 2, so it reaches no other run;
    `mend` gives it its last (first) site like the others.

    Queries on another space use the pattern of the keys: each reads what the site of some key would
    read. With "geometric" that is the key under its centre, with "official" (the released code) key
    number q modulo n, which on images is far away.

    Source: Daras et al. 2020, "Your Local GAN: Designing Two Dimensional Local Attention Mechanisms
    for Generative Models"; Child et al. 2019, "Generating Long Sequences with Sparse Transformers".

    Args:
        pattern: One or several of "ltr", "rtl", "strided", "fixed".
        order: "esa" numbers the sites of a grid by their Manhattan distance from the first, and
            those of equal distance in raster order; "raster" keeps the natural order, on any
            structure.
        stride: Sites of a run; None means floor(sqrt(n)).
        mend: Whether a shorter last run takes part in step 2 of "ltr" and "rtl".
        resize: Which row of the pattern a query on another space uses.
        scale: Factor of the dot products; None means 1/sqrt(d). The original's is 1.

    Raises:
        ValueError: A word is unknown, the stride exceeds n, or the heads do not split evenly.
        TypeError: A structure is not a Grid, where "esa" or "geometric" needs one.
        NotImplementedError: A structure has groups.
    """

    pattern: Pattern | tuple[Pattern, ...] = ("rtl", "ltr")
    order: Literal["esa", "raster"] = "esa"
    stride: int | None = None
    mend: bool = True
    resize: Literal["geometric", "official"] = "geometric"
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
        """Return which site reads which, in the order of the steps; see `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        sites, keys = structure.num_sites, key_structure.num_sites
        tiles = self._tiles(structure, key_structure)
        return torch.stack([step.mask(sites, keys) for step in tiles])

    def _tiles(self, structure: SpatialStructure, key_structure: SpatialStructure) -> list[Tiles]:
        check_one_space("LocalSparse", structure, key_structure)
        check_no_tokens("LocalSparse", structure, key_structure)
        shape, key_shape = self._shapes(structure, key_structure)
        n = math.prod(key_shape)
        stride = math.isqrt(n) if self.stride is None else self.stride
        _check_stride(stride, n)
        options = self.order, self.resize, structure.device

        def tables(pattern: str, step: int) -> tuple[Tensor, Tensor, Tensor]:
            numbers = [step, stride, int(self.mend)]
            return local_sparse_tables(list(shape), list(key_shape), numbers, pattern, *options)

        steps = [(pattern, step) for pattern in self.pattern for step in (1, 2)]
        made = constant(lambda: [tables(*each) for each in steps])
        return [Tiles(queries, keys, seen=seen) for queries, keys, seen in made]

    def _shapes(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of the grids, or the numbers of sites where a grid does not matter."""
        same = key_structure is structure
        if self.order == "raster" and (same or self.resize == "official"):
            return (structure.num_sites,), (key_structure.num_sites,)
        shape = grid_shape("LocalSparse", "structure", structure)
        key_shape = grid_shape("LocalSparse", "key_structure", key_structure)
        if self.resize == "geometric":
            check_same_rank(shape, key_shape)
        return shape, key_shape


def _check_patterns(patterns: Any, known: Any) -> None:
    if len(patterns) == 0:
        raise ValueError("pattern is empty; expected at least one")
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
