"""Augmentation of what the discriminator sees, made and real, differentiable; always as strong.

Source: Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training".
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def augment(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Change colour, place and a part of each picture at random, differentiably."""
    return _cut_out(_moved(_coloured(x)))


def _draw(x: Tensor) -> Float[Tensor, "b 1 1 1"]:
    return torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)


def _coloured(x: Tensor) -> Tensor:
    """Brightness by up to a half, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    x = x + _draw(x) - 0.5
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * 2 * _draw(x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (0.5 + _draw(x))


def _moved(x: Tensor, most: float = 1 / 8) -> Tensor:
    """Move by up to an eighth of the size; what comes in is 0."""
    height, width = x.shape[2:]
    row, column = (
        torch.arange(n, device=x.device)
        + (torch.rand(len(x), 1, device=x.device) * (2 * most * n + 1)).floor()
        - int(most * n)
        for n in (height, width)
    )
    grid = F.pad(x, (1, 1, 1, 1))
    row = (row.long() + 1).clamp(0, height + 1)
    column = (column.long() + 1).clamp(0, width + 1)
    of = torch.arange(len(x), device=x.device)[:, None, None]
    return grid.movedim(1, 3)[of, row[:, :, None], column[:, None, :]].movedim(3, 1)


def _cut_out(x: Tensor, share: float = 0.5) -> Tensor:
    """Blank a square of half of the side."""
    masks = []
    for n in x.shape[2:]:
        start = (torch.rand(len(x), 1, device=x.device) * (n + 1)).floor() - int(share * n / 2)
        at = torch.arange(n, device=x.device)
        masks.append((at >= start) & (at < start + int(share * n)))
    inside = masks[0][:, :, None] & masks[1][:, None, :]
    return x.masked_fill(inside[:, None], 0)
