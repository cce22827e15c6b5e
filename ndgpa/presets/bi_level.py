"""Bi-level routing attention of BiFormer."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ndgpa import arguments
from ndgpa.functional import attend, select
from ndgpa.presets.base import Preset, sizes_of
from ndgpa.selection import Rule, TopK
from ndgpa.structures import Grid, Image, SpatialStructure


def biformer(shape: tuple[int, int], dim: int, n_win: int = 7, topk: int = 4) -> Preset:
    """Build bi-level routing attention: one routing for all heads, over all channels.

    Regions are (height // n_win, width // n_win) pixels. Where they do not divide the image, keys
    and values are padded with zeros that are attended to, as in the released code; means leave the
    padding out.

    Source: Zhu et al. 2023, "BiFormer: Vision transformer with bi-level routing attention".

    Args:
        shape: Height and width in pixels.
        dim: Channels of all heads together; the scale is 1/sqrt(dim).
        n_win: Regions along each side; more where they do not divide it.
        topk: How many regions each region reads.
    """
    height, width = sizes_of("biformer", "shape", shape, 2)
    arguments.at_most("n_win", n_win, min(height, width), "pixels of the shorter side")
    image = Image((height, width), (height // n_win, width // n_win))
    rule = TopK(topk, relevance="logit", share="all")
    return Preset(_ZeroPadded(rule, dim**-0.5), image, image)


@dataclass(frozen=True)
class _ZeroPadded:
    """GPA on a grid whose border blocks are padded with keys and values of zero."""

    rule: Rule
    scale: float

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        grid = structure if key_structure is None else key_structure
        assert isinstance(grid, Grid)
        options: dict[str, Any] = {"scale": self.scale, "key_mask": key_mask}
        selection = select(
            query,
            key,
            structure,
            self.rule,
            key_structure=grid,
            query_mask=query_mask,
            **options,
        )
        whole = tuple(-(-n // r) * r for n, r in zip(grid.shape, grid.block_shape))
        more = [extra for n, w in zip(grid.shape[::-1], whole[::-1]) for extra in (0, w - n)]
        key, value = (
            F.pad(x.unflatten(2, grid.shape), [0, 0, *more]).flatten(2, -2) for x in (key, value)
        )
        if key_mask is not None:
            mask = F.pad(key_mask.unflatten(1, grid.shape), more, value=True)
            options["key_mask"] = mask.flatten(1)
        padded = Grid(whole, grid.block_shape)
        return attend(query, key, value, selection, structure, key_structure=padded, **options)
