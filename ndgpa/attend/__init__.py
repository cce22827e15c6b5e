"""The third question: how are the selected blocks read? (Phase 2)

A backend is a function of the reference's signature. There is one file for each.
"""

from collections.abc import Callable

from torch import Tensor

from ndgpa import _checks
from ndgpa.attend.chunked import chunked
from ndgpa.attend.reference import reference

Backend = Callable[..., tuple[Tensor, Tensor]]

BACKENDS: dict[str, Backend] = {"reference": reference, "torch": chunked}


def pick(name: str | None) -> Backend:
    """The backend of that name; None means the best there is for the call."""
    if name is None:
        return chunked
    _checks.one_of("backend", name, BACKENDS)
    return BACKENDS[name]
