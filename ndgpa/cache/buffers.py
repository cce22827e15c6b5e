"""Rows that are written one after another, with room for more."""

import torch
from torch import Tensor


def write(
    buffer: Tensor,  # (b, h, held, d)
    new: Tensor,  # (b, h, m, d)
    places: slice | Tensor,
    capacity: int,
) -> Tensor:  # (b, h, at least capacity, d)
    """Write rows into a buffer, after copying a buffer that is too small.

    The copy has at least twice the rows, so that copies are rare.
    """
    if buffer.shape[2] < capacity or capacity == 0:
        grown = new.new_zeros(*new.shape[:2], max(capacity, 2 * buffer.shape[2]), new.shape[3])
        if buffer.shape[2]:
            grown[:, :, : buffer.shape[2]] = buffer
        buffer = grown
    buffer[:, :, places] = new
    return buffer


def empty() -> Tensor:
    return torch.empty(1, 1, 0, 1)
