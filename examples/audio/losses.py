"""What training minimises.

Shapes: b recordings, h heads, c bands, t frames.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.model import Repair


def repair_loss(
    repair: Repair, true: Float[Tensor, "b c t"], known: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Absolute error of the logarithms in the gaps, and less so elsewhere, where noise is."""
    error = (repair.bands - true).abs().mean(dim=1)
    return mean_over(error, ~known) + 0.3 * mean_over(error, known)


def copy_loss(
    repair: Repair, true: Float[Tensor, "b c t"], known: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """How far what each head copied into a gap is from what was there.

    It alone tells queries and keys directly where to look.
    """
    error = (repair.copied - true[:, None]).abs().mean(dim=2)
    read = (~known[:, None]) & (repair.found > 0.5)
    return mean_over(error, read.expand_as(error))


def mean_over(error: Float[Tensor, "*s"], where: Bool[Tensor, "*s"]) -> Float[Tensor, ""]:
    """The mean of the places that are marked; 0 where none is."""
    return torch.where(where, error, 0).sum() / where.sum().clamp(min=1)
