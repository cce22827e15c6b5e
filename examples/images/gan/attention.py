"""What one site reads of each key, by any attention."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import ndgpa


@torch.no_grad()
def read_by(
    operator: Any,
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads k d"],
    structure: ndgpa.SpatialStructure,
    site: int,
    at_once: int = 256,
) -> Float[Tensor, "b heads k"]:
    """Return how much one site reads of each key: what is read where values are the identity.

    Args:
        operator: Any attention.
        site: Number of the query.
        at_once: Columns of the identity.
    """
    identity = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
    read = [
        operator(query, key, part.expand(*key.shape[:2], -1, -1), structure)[:, :, site]
        for part in identity.split(at_once, dim=1)
    ]
    return torch.cat(read, dim=2)
