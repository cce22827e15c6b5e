"""Operators side by side, each with its share of the heads (StyleNAT's Hydra)."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ndgpa.operators._heads import head_counts, heads_of_part
from ndgpa.operators.base import Operator, SaysMask, checked_call, masks_to_pass_on
from ndgpa.operators.neighborhood import Neighborhood
from ndgpa.structures import SpatialStructure
from ndgpa.structures.grid import PerAxis


class Hydra(nn.Module):
    """Split the heads among several operators.

    The heads are dealt in order: each part gets heads // parts, and each of the last heads % parts
    one more.

    Source: Walton et al. 2022, "StyleNAT: Giving Each Head a New Perspective".

    Args:
        parts: The operators, e.g. `[Neighborhood(7), Neighborhood(7, dilation=8)]`.

    Raises:
        ValueError: There are no parts, or fewer heads than parts.
    """

    def __init__(self, parts: list[Operator] | tuple[Operator, ...]) -> None:
        super().__init__()
        _check_parts(parts)
        self.parts = tuple(parts)
        self.learned = nn.ModuleDict(
            {str(i): part for i, part in enumerate(parts) if isinstance(part, nn.Module)}
        )

    @classmethod
    def of(
        cls,
        kernels: list[PerAxis],
        dilations: list[PerAxis],
        rel_bias: bool = False,
        heads: int | None = None,
        scale: float | None = None,
    ) -> "Hydra":
        """Build a Hydra of neighborhoods; a list of one kernel or dilation serves all parts."""
        kernels, dilations = _paired_lists(kernels, dilations)
        shares: tuple[int | None, ...] = (None,) * len(kernels)
        if heads is not None:
            shares = head_counts("Hydra", heads, len(kernels))
        return cls(
            [
                Neighborhood(kernel, dilation, rel_bias, share, scale)
                for kernel, dilation, share in zip(kernels, dilations, shares)
            ]
        )

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
        checked_call(
            query,
            key,
            value,
            structure,
            key_structure,
            scale=None,
            key_mask=key_mask,
            query_mask=query_mask,
        )
        masks = masks_to_pass_on(key_mask, query_mask)
        counts = head_counts("Hydra", query.shape[1], len(self.parts))
        outs = [
            part(*heads_of_part(query, key, value, counts, i), structure, key_structure, **masks)
            for i, part in enumerate(self.parts)
        ]
        return torch.cat(outs, dim=1)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """Return which site reads which, part after part; see `SaysMask.mask`."""
        masks = []
        for i, part in enumerate(cast("tuple[SaysMask, ...]", self.parts)):
            given: tuple[Tensor, ...] = ()
            if query is not None and key is not None:
                counts = head_counts("Hydra", query.shape[1], len(self.parts))
                given = heads_of_part(query, key, key, counts, i)[:2]
            masks.append(part.mask(structure, key_structure, *given))
        return torch.cat(masks)


def _paired_lists(kernels: list[Any], dilations: list[Any]) -> tuple[list[Any], list[Any]]:
    """Repeat a list of one entry to the length of the other list."""
    longest = max(len(kernels), len(dilations))
    for name, given in (("kernels", kernels), ("dilations", dilations)):
        if len(given) not in (1, longest):
            raise ValueError(f"{name} has {len(given)} entries; expected 1 or {longest}")
    whole = [list(x) * (longest if len(x) == 1 else 1) for x in (kernels, dilations)]
    return whole[0], whole[1]


def _check_parts(parts: Any) -> None:
    if len(parts) == 0:
        raise ValueError("parts is empty; Hydra needs at least one operator")
    for part in parts:
        if not callable(part):
            raise TypeError(f"parts must be operators; got {type(part).__name__}")
