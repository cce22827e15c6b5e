"""An operator bound to the structures that it was made for."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ndgpa import arguments
from ndgpa.operators import Operator
from ndgpa.structures import SpatialStructure


@dataclass(frozen=True)
class Preset:
    """Call an operator on the structures that it was made for."""

    operator: Operator
    structure: SpatialStructure
    key_structure: SpatialStructure

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        **options: Any,
    ) -> Float[Tensor, "b h n dv"]:
        return self.operator(query, key, value, self.structure, self.key_structure, **options)


def sizes_of(who: str, name: str, sizes: Any, rank: int) -> tuple[int, ...]:
    """Check that there is one size for each axis."""
    entries = arguments.ints(name, sizes)
    if len(entries) != rank:
        raise ValueError(f"{who} needs a {name} of {rank} axes; got {sizes}")
    return entries


def check_multiple(who: str, name: str, value: int, of: int) -> None:
    if value % of:
        raise ValueError(f"{who} needs a {name} that is a multiple of {of}; got {value}")
