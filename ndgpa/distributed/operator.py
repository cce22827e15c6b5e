"""Grid Partitioned Attention over ranks, as an operator: for layers that take one."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa.distributed.functional import gpa
from ndgpa.operators import GPA
from ndgpa.structures import SpatialStructure


@dataclass(frozen=True)
class ContextParallel:
    """Apply `ndgpa.GPA` to spaces that are sharded: structures are parts, features of this rank.

    Args:
        operator: The options, as on one process.

    Raises:
        NotImplementedError: The operator has a coarse branch.

    Example:
        layer = ndgpa.nn.SpatialAttention(64, heads=4, operator=ContextParallel(ndgpa.GPA(12)))
        out = layer(x, part)  # x: (batch, sites of this rank, 64)
    """

    operator: GPA

    def __post_init__(self) -> None:
        if self.operator.coarse is not None:
            raise NotImplementedError(
                "ContextParallel has no coarse branch; use far='site', whose means are gathered"
            )

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
        """Attend; arguments and errors as of `ndgpa.distributed.gpa`."""
        options = self.operator
        return gpa(
            query,
            key,
            value,
            structure,
            options.rule,
            key_structure=key_structure,
            scale=options.scale,
            affinity=options.affinity,
            causal=options.causal,
            key_mask=key_mask,
            query_mask=query_mask,
            read=options.read,
            far=options.far,
            backend=options.backend,
        )
