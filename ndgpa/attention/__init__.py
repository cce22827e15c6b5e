"""The third question: how are the selected blocks read? (Phase 2)

A backend is a function of the reference's signature. There is one file for each.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.chunked import chunked
from ndgpa.attention.far_chunked import chunked as far_chunked
from ndgpa.attention.far_field import FAR, FarBackend, literal
from ndgpa.attention.far_merge import merge_far, merged
from ndgpa.attention.reference import reference
from ndgpa.attention.token_merge import formula as merged_with_tokens, merge_tokens
from ndgpa.attention.triton.ops import DTYPES, WIDEST, check_call, fused, is_usable

Backend = Callable[..., tuple[Tensor, Tensor]]
BackendName = Literal["reference", "torch", "triton"]

BACKENDS: dict[str, Backend] = {"reference": reference, "torch": chunked, "triton": fused}

FAR_BACKENDS = {
    "reference": FarBackend(literal, merged),
    "torch": FarBackend(far_chunked, merge_far),
}


def pick(name: str | None, query: Tensor, value: Tensor) -> Backend:
    """The backend of that name; None means the best there is for the call."""
    if name is None:
        return fused if is_usable(query, value) else chunked
    arguments.one_of("backend", name, BACKENDS)
    if name == "triton":
        check_call(query, value, DTYPES, WIDEST)
    return BACKENDS[name]


def pick_far(far: str, name: str | None) -> FarBackend:
    """How the far field is computed beside a near field of the backend of that name."""
    arguments.one_of("far", far, FAR)
    if name == "triton":
        raise NotImplementedError(
            "backend 'triton' has no far field; use backend='torch', or None, which runs the near "
            "field in kernels on a GPU"
        )
    return FAR_BACKENDS["reference" if name == "reference" else "torch"]


def pick_token_merge(name: str | None) -> Backend:
    """How sites read special tokens beside a backend of that name."""
    return merged_with_tokens if name == "reference" else merge_tokens


def skips_hidden_keys(backend: Backend) -> bool:
    """Whether it never reads a key whose bias is -inf; the others multiply it by zero."""
    return backend is fused
