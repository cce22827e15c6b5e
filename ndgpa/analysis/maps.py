"""The attention weights of any operator.

An operator is linear in the values, so its weights are the derivative of its output by the values.
That holds for sparse, low-rank and random-feature attention alike, without access to their
internals and in the memory of the operator.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa.analysis._rows import check_sites
from ndgpa.operators import Operator
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import check_same_rank, grid_shape

# Queries whose rows are made in one call of the operator.
_ROWS = 64


def attention_map(
    operator: Operator,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    structure: SpatialStructure,
    sites: Int[Tensor, " s"],
    key_structure: SpatialStructure | None = None,
    *,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
) -> Float[Tensor, "b h s n_k"]:
    """Return the weights of the queries at given sites, over all keys.

    They sum to 1 where the operator is a softmax. An operator that counts its calls, such as a
    `Performer` in training, counts these too; put it into evaluation mode first.

    Args:
        sites: The sites of the queries.

    Raises:
        ValueError, TypeError: A site does not exist, or as for the operator.
    """
    check_sites("sites", sites, structure.num_sites)
    query, key = query.detach(), key.detach()
    parts = [
        _rows(operator, query, key, structure, some, key_structure, key_mask)
        for some in sites.to(query.device).split(_ROWS)
    ]
    return torch.cat(parts, dim=2)


def saliency(
    operator: Operator,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    structure: SpatialStructure,
    key_structure: SpatialStructure | None = None,
    *,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
) -> Float[Tensor, "b h n_k"]:
    """Average the weight of each key over the queries that read it; 0 for a key that none reads.

    This calls the operator once for every 64 queries.

    Source: Section 5.1 of Daras et al. 2020, "Your Local GAN" (inversion by attention).
    """
    query, key = query.detach(), key.detach()
    wide = torch.promote_types(key.dtype, torch.float32)
    total = query.new_zeros(*query.shape[:2], key.shape[2], dtype=wide)
    readers = torch.zeros_like(total)
    for some in torch.arange(query.shape[2], device=query.device).split(_ROWS):
        rows = _rows(operator, query, key, structure, some, key_structure, key_mask)
        total += rows.sum(dim=2, dtype=total.dtype)
        readers += (rows != 0).sum(dim=2)
    return total / readers.clamp(min=1)


def to_grid(
    x: Float[Tensor, "*batch n"], structure: SpatialStructure, size: tuple[int, ...] | None = None
) -> Float[Tensor, "..."]:
    """Lay numbers of sites out over their grid, as a sequence, image or video.

    Args:
        size: Resize to this size, by nearest neighbour.

    Returns:
        The batch axes, then those of the grid.

    Raises:
        TypeError: The structure is not a Grid.
    """
    shape = grid_shape("to_grid", "structure", structure)
    image = x.unflatten(-1, shape)
    if size is None:
        return image
    check_same_rank(size, shape)
    flat = image.reshape(1, -1, *shape)
    return F.interpolate(flat, size=size, mode="nearest-exact").view(*x.shape[:-1], *size)


def _rows(
    operator: Operator,
    query: Tensor,
    key: Tensor,
    structure: SpatialStructure,
    sites: Tensor,
    key_structure: SpatialStructure | None,
    key_mask: Tensor | None,
) -> Tensor:  # (b, h, s, n_k)
    """Compute the rows one query head of a group at a time, as gradients of values sum over it."""
    group = query.shape[1] // key.shape[1]
    with torch.enable_grad():
        value = key.new_zeros(*key.shape[:3], len(sites), requires_grad=True)
        out = operator(query, key, value, structure, key_structure, key_mask=key_mask)
        picked = out[:, :, sites].diagonal(dim1=2, dim2=3)
        if not picked.requires_grad:
            return torch.zeros_like(value).mT.repeat_interleave(group, dim=1)
        rows = [
            torch.autograd.grad(picked[:, member::group].sum(), value, retain_graph=True)[0].mT
            for member in range(group)
        ]
    return torch.stack(rows, dim=2).flatten(1, 2)
