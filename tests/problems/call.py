"""The arguments of one call."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

import ndgpa
from ndgpa.selection import Rule
from ndgpa.structures import Sampling


@dataclass(frozen=True)
class Problem:
    """The arguments of one call of `ndgpa.gpa`."""

    seed: int
    query: Tensor = field(repr=False)
    key: Tensor = field(repr=False)
    value: Tensor = field(repr=False)
    structure: ndgpa.SpatialStructure
    key_structure: ndgpa.SpatialStructure
    rule: Rule
    affinity: str
    scale: float | None
    causal: bool
    key_mask: Tensor | None = field(repr=False)
    read: Sampling | None
    values: str

    def __str__(self) -> str:
        shapes = " ".join(str(tuple(x.shape)) for x in self.inputs)
        dtype, masked = str(self.query.dtype).removeprefix("torch."), self.key_mask is not None
        space = _name(self.structure)
        if self.key_structure is not self.structure:
            space += f" to {_name(self.key_structure)}"
        if self.read is not None:
            space += f" read by {self.read}"
        return (
            f"problem {self.seed}: {self.rule} on {space}, {shapes} {dtype} {self.values}, "
            f"{self.affinity}, scale={self.scale}, causal={self.causal}, masked={masked}"
        )

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def options(self) -> dict[str, Any]:
        names = ("key_structure", "affinity", "scale", "causal", "key_mask")
        return {name: getattr(self, name) for name in names}

    @property
    def reading(self) -> dict[str, Any]:
        """The options of Phase 2."""
        return {**self.options, "read": self.read}

    @property
    def key_sites(self) -> Tensor:
        """The sites that are read where a block is selected."""
        keys = self.key_structure
        return keys.blocks if self.read is None else self.read.sites(keys)

    @property
    def logit_scale(self) -> float:
        return self.query.shape[3] ** -0.5 if self.scale is None else self.scale

    @property
    def hides_queries(self) -> bool:
        """Whether the sites that the mask hides are sites of the queries too."""
        return self.key_mask is not None and self.key_structure is self.structure

    def with_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> "Problem":
        return replace(self, query=query, key=key, value=value)


def _name(structure: ndgpa.SpatialStructure) -> str:
    groups = "" if structure.group is None else f" in {len(structure.group.unique())} groups"
    return f"{structure}{groups}"
