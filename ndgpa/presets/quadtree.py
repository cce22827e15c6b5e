"""QuadTree attention."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ndgpa.functional import attend, select
from ndgpa.presets.base import Preset, check_multiple, sizes_of
from ndgpa.problem import Selection
from ndgpa.selection import TopK
from ndgpa.selection.select_children import select_children
from ndgpa.structures import Image, Sequence, SpatialStructure


def quadtree_b(
    shape: tuple[int, int],
    topks: tuple[int, ...],
    weights: Float[Tensor, " levels"] | tuple[float, ...] | None = None,
) -> Preset:
    """Build QuadTree attention B: add the messages of all pyramid levels with softmax weights.

    At the coarsest level every token attends to all tokens. At each finer level a token attends to
    the children of the `topks` best tokens of its parent, and chooses among them for its own
    children. Queries, keys and values of a level are 2x2 means of those of the next finer level.

    Source: Tang et al. 2022, "QuadTree attention for vision transformers".

    Args:
        shape: Height and width, multiples of 2 for each of `topks`.
        topks: How many tokens are kept at each level but the finest, coarsest first.
        weights: The weight of each level before the softmax, coarsest first; None means zeros. To
            learn them, pass an `nn.Parameter`; it becomes a parameter of the preset's operator.
    """
    height, width = sizes_of("quadtree_b", "shape", shape, 2)
    for size in (height, width):
        check_multiple("quadtree_b", "side", size, 2 ** len(topks))
    levels = len(topks) + 1
    if not isinstance(weights, Tensor):
        given = (0.0,) * levels if weights is None else weights
        weights = torch.tensor(given, dtype=torch.float64)
    _check_level_weights(weights, levels)
    image = Image((height, width), 2)
    return Preset(_QuadTreeB(topks, weights), image, image)


class _QuadTreeB(nn.Module):
    def __init__(self, topks: tuple[int, ...], weights: Float[Tensor, " levels"]) -> None:
        super().__init__()
        self.topks, self.weights = topks, weights

    def forward(
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
        _check_no_masks(key_mask=key_mask, query_mask=query_mask)
        structure = structure.to(query.device)
        levels = [(structure, query, key, value)]
        for _ in self.topks:
            space, q, k, v = levels[0]
            q, k, v = (space.downsample(x) for x in (q, k, v))
            levels.insert(0, (space.coarsened(2), q, k, v))
        share = self.weights.to(torch.promote_types(self.weights.dtype, torch.float32)).softmax(0)
        _, q, k, v = levels[0]
        grouped = k.shape[1] != q.shape[1]
        out = share[0] * F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        kept: Tensor | None = None
        for level, topk in enumerate(self.topks, start=1):
            space, q, k, _ = levels[level - 1]
            kept = _choose(q, k, space, kept, topk)
            finer, q, k, v = levels[level]
            message = attend(q, k, v, Selection(kept), finer)
            out = out[:, :, finer.block_of_site] + share[level] * message
        return out


def _choose(
    query: Tensor,  # (b, h, n, d): tokens of one level
    key: Tensor,
    space: SpatialStructure,  # the tokens, four to a block
    kept: Int[Tensor, "b h B K"] | None,  # what the parents kept; None at the coarsest level
    topk: int,
) -> Int[Tensor, "b h n k"]:
    """Choose the best tokens for each token among the children of what its parent kept."""
    if kept is None:
        every = Sequence(space.num_sites, 1)
        return select(query, key, every, TopK(topk)).blocks
    return select_children(
        query=query[:, :, :, None].detach(),
        key=space.by_block(key).detach(),
        log_size=query.new_zeros(query.shape[0], *space.blocks.shape),
        kept=kept[:, :, space.block_of_site],
        weight=query.new_ones(query.shape[0], space.num_sites, 1),
        forced=None,
        children=space.blocks,
        k=topk,
        share="head",
        scale=query.shape[-1] ** -0.5,
    )


def _check_level_weights(weights: Tensor, levels: int) -> None:
    if not weights.dtype.is_floating_point or tuple(weights.shape) != (levels,):
        raise ValueError(
            f"quadtree_b needs {levels} floating weights, one more than topks has entries; got "
            f"{weights.dtype} of shape {tuple(weights.shape)}"
        )


def _check_no_masks(**masks: Tensor | None) -> None:
    for name, mask in masks.items():
        if mask is not None:
            raise ValueError(f"quadtree_b does not support {name}")
