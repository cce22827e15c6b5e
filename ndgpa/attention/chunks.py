"""How much of a problem is computed at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers that one chunk may hold: about a processor's cache, or enough to fill a GPU.
BUDGET = {"cpu": 1 << 20, "cuda": 1 << 27}


def room(numbers: int, like: Tensor) -> int:
    """How many rows of so many numbers each keep to the budget of the device; at least one."""
    return max(1, BUDGET["cuda" if like.is_cuda else "cpu"] // max(1, numbers))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows into runs of `size`; a graph for ONNX has one run."""
    if torch.onnx.is_in_onnx_export():
        return iter([slice(None)])
    return (slice(i, i + size) for i in range(0, count, size))
