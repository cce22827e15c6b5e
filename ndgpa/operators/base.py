"""The interface of every attention of the package."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import has_tangents
from ndgpa.problem import Problem
from ndgpa.structures import SpatialStructure


@runtime_checkable
class Operator(Protocol):
    """Attend over a space; operators are interchangeable wherever one is expected.

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
            query_mask: True where a query takes part in what queries share, such as a selection
                or landmarks. None means `key_mask` in self-attention, all queries otherwise.
                Operators that treat each query on its own ignore it.
        """
        ...


class Attends:
    """Own an operator and attend through it, so that `ndgpa.suggest` can watch the calls.

    A module that attends is one, or has one among its attributes. `operator` is called as
    `operator(query, key, value, structure, ...)` and can be replaced.
    """

    operator: Any


class SaysMask(Operator, Protocol):
    """Tell which keys each query reads, besides attending."""

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Float[Tensor, "b h n d"] | None = None,
        key: Float[Tensor, "b hk n_k d"] | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """Return which site reads which, True where the output depends on the key.

        There is one mask for each group of heads that read alike, in the order of the heads. A
        mask has n * n_k entries, so use it on small spaces.

        Args:
            query, key: For an operator that chooses its keys by their features; others ignore them.
        """
        ...


def checked_call(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    structure: SpatialStructure,
    key_structure: SpatialStructure | None,
    *,
    scale: float | None,
    key_mask: Bool[Tensor, "b n_k"] | None,
    query_mask: Bool[Tensor, "b n"] | None,
) -> Problem:
    """Check and complete a call of an operator that has no forward-mode derivative."""
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        key_mask=key_mask,
        query_mask=query_mask,
        value=value,
    )
    _check_no_tangents(query, key, value)
    return problem


def masks_to_pass_on(
    key_mask: Bool[Tensor, "b n_k"] | None, query_mask: Bool[Tensor, "b n"] | None
) -> dict[str, Any]:
    """Collect the masks of a call; a `query_mask` of None is left out.

    So an operator that does not know `query_mask` can be called too.
    """
    masks = {"key_mask": key_mask}
    return masks if query_mask is None else {**masks, "query_mask": query_mask}


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


def _check_no_tangents(*xs: Tensor) -> None:
    if has_tangents(*xs):
        raise NotImplementedError(
            "this operator has no forward-mode derivative; use reverse mode, or Full"
        )
