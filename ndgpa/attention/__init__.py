"""The third question: how are the selected blocks read? (Phase 2)

A backend is a function of the reference's signature. There is one file for each.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import call
from ndgpa.attention.chunked import chunked
from ndgpa.attention.far_beside import read_beside
from ndgpa.attention.far_chunked import chunked as far_chunked
from ndgpa.attention.far_field import Bundles, Far, FarBackend, check_far, literal
from ndgpa.attention.far_merge import merge_far, merged
from ndgpa.attention.reference import reference
from ndgpa.attention.token_merge import formula, merge_tokens
from ndgpa.attention.token_reads import read_everything
from ndgpa.attention.tokens import TokenBackend, read_by_blocks
from ndgpa.attention.triton.far_ops import far_fused
from ndgpa.attention.triton.ops import DTYPES, WIDEST, check_call, fused, is_usable

Backend = Callable[..., tuple[Tensor, Tensor]]
BackendName = Literal["reference", "torch", "triton"]

BACKENDS: dict[str, Backend] = {"reference": reference, "torch": chunked, "triton": fused}

FAR_BACKENDS = {
    "reference": FarBackend(literal, merged),
    "torch": FarBackend(far_chunked, merge_far),
    "triton": FarBackend(far_fused, merge_far),
}


def pick(name: str | None, query: Tensor, value: Tensor) -> Backend:
    """The backend of that name; None means the best there is for the call."""
    if name is None:
        return fused if is_usable(query, value) else chunked
    arguments.one_of("backend", name, BACKENDS)
    if name == "triton":
        check_call(query, value, DTYPES, WIDEST)
    return BACKENDS[name]


def pick_far(far: Far | Bundles, name: str | None, query: Tensor, value: Tensor) -> FarBackend:
    """How the far field "site" is computed beside a near field of the backend of that name."""
    check_far(far)
    if name is None:
        name = "triton" if is_usable(query, value) else "torch"
    if torch.onnx.is_in_onnx_export():  # which has no operators of ours, and no chunks
        name = "reference"
    return FAR_BACKENDS.get(name, FAR_BACKENDS["torch"])


def reading_far_keys(run: Backend) -> Backend:
    """The same backend, with an argument `far` more: the far keys of the cells."""
    return run if run is chunked else partial(read_beside, run)


def pick_tokens(name: str | None, run: Backend) -> TokenBackend:
    """How special tokens are read, and read, beside a backend of that name."""
    if name == "reference":
        return TokenBackend(formula, partial(read_by_blocks, run))
    read = partial(read_by_blocks, run) if run is fused else read_everything
    return TokenBackend(partial(call, merge_tokens), read)


def skips_hidden_keys(backend: Backend) -> bool:
    """Whether it never reads a key whose bias is -inf; the others multiply it by zero."""
    return backend is fused
