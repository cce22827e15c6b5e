"""Grid Partitioned Attention with its options bound."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa.functional import gpa
from ndgpa.selection import Rule
from ndgpa.structures import SpatialStructure


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
