"""One of the sites of each block, or of each part of a block, in place of their mean."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.structures.base import SpatialStructure


def seen_middles(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    seen: Bool[Tensor, "#b n"] | None = None,
    parts: int = 1,
) -> tuple[Float[Tensor, "b h B S d"], Float[Tensor, "#b B S"]]:
    """Take the middle one of the seen sites of each part of each block, 0 where there are none.

    The parts are runs of sites, in the order in which the structure lists them; of m seen sites
    the middle one is number m // 2, from 0.

    Returns:
        Its features and the number of seen sites, in float32 or wider.
    """
    runs = structure.kept_with(structure, ("runs", parts), lambda own, _: _runs(own.blocks, parts))
    there = (runs >= 0)[None]
    if seen is not None:
        there = there & seen[:, runs.clamp(min=0)]
    count = there.sum(dim=-1)
    middle = there & (there.cumsum(dim=-1) == count[..., None] // 2 + 1)
    sites = runs.clamp(min=0).expand(middle.shape).gather(-1, middle.int().argmax(-1)[..., None])
    taken = _taken(x, sites[..., 0]).masked_fill((count == 0)[:, None, ..., None], 0)
    return taken.to(wide(x)), count.to(wide(x))


def _runs(blocks: Int[Tensor, "B R"], parts: int) -> Int[Tensor, "B S L"]:
    """Cut blocks into at most `parts` runs of one length; -1 for an empty place."""
    length = -(-blocks.shape[1] // parts)
    return F.pad(blocks, (0, -blocks.shape[1] % length), value=-1).unflatten(1, (-1, length))


def _taken(x: Float[Tensor, "b h n d"], sites: Int[Tensor, "#b B S"]) -> Float[Tensor, "b h B S d"]:
    if len(sites) == 1:
        return x.index_select(2, sites.flatten()).unflatten(2, sites.shape[1:])
    each = sites.flatten(1)[:, None, :, None].expand(*x.shape[:2], -1, x.shape[3])
    return x.gather(2, each).unflatten(2, sites.shape[1:])
