"""No attention at all: the baseline that the paper calls NO."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import cast_for_autocast
from ndgpa.problem import Problem
from ndgpa.structures import SpatialStructure


@dataclass(frozen=True)
class NoAttention:
    """Return zeros without reading any key, so that a residual adds nothing.

    Source: "NO" in Section 3.2 of Jetchev et al. 2021.
    """

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
        Problem.of(
            query,
            key,
            structure,
            key_structure=key_structure,
            key_mask=key_mask,
            query_mask=query_mask,
            value=value,
        )
        (value,) = cast_for_autocast(value)
        return value.new_zeros(*query.shape[:3], value.shape[3])

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "1 n n_k"]:
        """Return all False: no site reads any key; see `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        shape = (1, structure.num_sites, key_structure.num_sites)
        return torch.zeros(shape, dtype=torch.bool, device=structure.device)
