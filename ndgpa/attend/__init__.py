"""The third question: how are the selected blocks read? (Phase 2)

A backend is a function of the reference's signature. There is one file for each.
"""

from collections.abc import Callable

from torch import Tensor

from ndgpa import _checks
from ndgpa.attend.chunked import chunked
from ndgpa.attend.far_chunked import chunked as far_chunked
from ndgpa.attend.far_field import FarBackend, literal
from ndgpa.attend.far_merge import merge_far, merged
from ndgpa.attend.reference import reference
from ndgpa.attend.triton_ops import fused, is_usable

Backend = Callable[..., tuple[Tensor, Tensor]]

BACKENDS: dict[str, Backend] = {"reference": reference, "torch": chunked, "triton": fused}

FAR_BACKENDS = {
    "reference": FarBackend(literal, merged),
    "torch": FarBackend(far_chunked, merge_far),
}


def pick(name: str | None, query: Tensor, value: Tensor) -> Backend:
    """The backend of that name; None means the best there is for the call."""
    if name is None:
        return fused if is_usable(query, value) else chunked
    _checks.one_of("backend", name, BACKENDS)
    return BACKENDS[name]


def pick_far(backend: str | None) -> FarBackend:
    """What asks the far field, beside the backend of that name."""
    if backend == "triton":
        raise NotImplementedError(
            "backend 'triton' has no far field; use 'torch', or None for the fastest there is"
        )
    return FAR_BACKENDS["reference" if backend == "reference" else "torch"]


def skips_hidden_keys(backend: Backend) -> bool:
    """Whether it never reads a key whose bias is -inf; the others multiply it by zero."""
    return backend is fused
