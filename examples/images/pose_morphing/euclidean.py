"""Low-rank attentions know dot products only; one more feature makes the euclidean affinity one."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ndgpa.operators import Operator
from ndgpa.structures import SpatialStructure

ROOT = math.sqrt(2)


class EuclideanByDot(nn.Module):
    """Apply an operator of dot products, of scale 1, to the affinity -|q - k|^2.

    -|q - k|^2 is 2 q.k - |k|^2 and a number that is the same for all keys of a query, which the
    softmax forgets. So queries (sqrt(2) q, 1) and keys (sqrt(2) k, mean of |k|^2 - |k|^2) have the
    same attention.

    Args:
        operator: Of scale 1, for queries of one more feature.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def forward(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        """Attend; see `Operator`."""
        lengths = key.square().sum(dim=3, keepdim=True)
        lengths = lengths - lengths.mean(dim=2, keepdim=True)
        query = torch.cat([ROOT * query, torch.ones_like(query[..., :1])], dim=3)
        key = torch.cat([ROOT * key, -lengths], dim=3)
        return self.operator(query, key, value, structure, key_structure)
