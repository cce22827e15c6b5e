"""What every attention of the package can be called as."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import has_tangents
from ndgpa.problem import check_key_mask, check_query_and_key, check_query_mask, check_value
from ndgpa.structures import SpatialStructure


@runtime_checkable
class Operator(Protocol):
    """Attention over a space: operators are interchangeable wherever one is expected.

    An operator is a frozen dataclass, or an `nn.Module` where it has parameters or buffers.
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
        """Attend.

        Args:
            structure: The space of the queries.
            key_structure: The space of the keys; None means the same.
            key_mask: True where a key is seen.
            query_mask: True where a query takes part in what queries share: a selection, or
                landmarks. None means all, but in self-attention where a key is seen. Operators
                that answer each query on its own have no use for it.
        """
        ...


class SaysMask(Operator, Protocol):
    """An operator that can say which keys each query reads."""

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Float[Tensor, "b h n d"] | None = None,
        key: Float[Tensor, "b hk n_k d"] | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """Which site reads which, True where the output depends on the key.

        One mask for each group of heads that read alike, in the order of the heads. It has n * n_k
        entries: for small spaces.

        Args:
            query, key: For an operator that chooses its keys by their features; others ignore them.
        """
        ...


def check_call(
    query: Any,
    key: Any,
    value: Any,
    structure: Any,
    key_structure: Any,
    mask: Any,
    voters: Any = None,
) -> None:
    """What every operator asks of its arguments."""
    check_query_and_key(query, key, structure, key_structure)
    check_value(key, value)
    check_key_mask(mask, key)
    check_query_mask(voters, query)
    if has_tangents(query, key, value):
        raise NotImplementedError(
            "this operator has no forward-mode derivative; use reverse mode, or Full"
        )


def check_as_many_blocks(
    who: str, structure: SpatialStructure, key_structure: SpatialStructure
) -> None:
    if structure.num_blocks != key_structure.num_blocks:
        raise ValueError(
            f"{who} needs as many blocks of queries as of keys; structure has "
            f"{structure.num_blocks} and key_structure {key_structure.num_blocks}"
        )


def check_one_space(who: str, *structures: SpatialStructure) -> None:
    if any(structure.group is not None for structure in structures):
        raise NotImplementedError(
            f"{who} does not support structures with groups; call it once for each group"
        )
