"""Grid Partitioned Attention with its options bound."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import _checks
from ndgpa.functional import gpa, select
from ndgpa.selection import Rule
from ndgpa.structures import SpatialStructure, visible


@dataclass(frozen=True)
class GPA:
    """`ndgpa.gpa` as an operator; options and errors as there.

    Args:
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
    """

    rule: Rule | int
    scale: float | None = None
    affinity: str = "dot"
    causal: bool = False
    backend: str | None = None

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        return gpa(
            query,
            key,
            value,
            structure,
            self.rule,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
            key_mask=key_mask,
            backend=self.backend,
        )

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """The keys that the rule selects for these features; as `SaysMask.mask`.

        There is a group for each batch and selection head.
        """
        query, key = _checks.features_for_mask("GPA", query, key)
        key_structure = structure if key_structure is None else key_structure
        selection = select(
            query,
            key,
            structure,
            self.rule,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
        )
        ids = selection.blocks.flatten(0, 1).long()
        reads = torch.zeros(
            *ids.shape[:2], key_structure.num_blocks + 1, dtype=torch.bool, device=ids.device
        )
        reads = reads.scatter_(2, ids % reads.shape[2], value=True)[:, :, :-1]  # -1 is the last
        mask = reads[:, structure.cell_of_site][:, :, key_structure.block_of_site]
        seen = visible(structure, key_structure, self.causal)
        return mask if seen is None else mask & seen
