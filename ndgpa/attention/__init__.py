"""The third question: how are the selected blocks read? (Phase 2)

A backend is a function of the reference's signature. There is one file for each.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.chunked import chunked
from ndgpa.attention.reference import reference
from ndgpa.attention.triton.ops import DTYPES, WIDEST, check_call, fused, is_usable

Backend = Callable[..., tuple[Tensor, Tensor]]
BackendName = Literal["reference", "torch", "triton"]

BACKENDS: dict[str, Backend] = {"reference": reference, "torch": chunked, "triton": fused}


def pick(name: str | None, query: Tensor, value: Tensor) -> Backend:
    """The backend of that name; None means the best there is for the call."""
    if name is None:
        return fused if is_usable(query, value) else chunked
    arguments.one_of("backend", name, BACKENDS)
    if name == "triton":
        check_call(query, value, DTYPES, WIDEST)
    return BACKENDS[name]


def skips_hidden_keys(backend: Backend) -> bool:
    """Whether it never reads a key whose bias is -inf; the others multiply it by zero."""
    return backend is fused
