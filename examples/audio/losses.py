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
    """Compare logarithms in the gaps, and with less weight elsewhere, where there is noise."""
    error = (repair.bands - true).abs().mean(dim=1)
    return mean_over(error, ~known) + 0.3 * mean_over(error, known)


def copy_loss(
    repair: Repair, true: Float[Tensor, "b c t"], known: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Compare what each head copied into a gap with what was there.

    It alone tells queries and keys directly where to look.
    """
    error = (repair.copied - true[:, None]).abs().mean(dim=2)
    read = (~known[:, None]) & (repair.found > 0.5)
    return mean_over(error, read.expand_as(error))


def mean_over(error: Float[Tensor, "*s"], where: Bool[Tensor, "*s"]) -> Float[Tensor, ""]:
    """Average over the places that are marked; 0 where none is."""
    return torch.where(where, error, 0).sum() / where.sum().clamp(min=1)
