"""Supervision of the attentions that read all keys, where the true source of a pixel is known.

After an affine map it always is, so this asks for no labels; rendered figures know it for any pair.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from examples.images.pose_morphing.model import Level
from ndgpa import Full

LEAST_SITES = 64  # smaller attentions are too coarse to be told where to look


def correspondence_loss(
    levels: list[Level], origin: Float[Tensor, "b h w 2"], known: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Cross-entropy between attention and the true place, shared bilinearly by four keys.

    Args:
        levels: Of a generator; those with full attention count.
        origin: x and y of the source of each target pixel, in -1 to 1 over the picture.
        known: Where there is such a source.
    """
    terms = [
        level_loss(level, origin, known)
        for level in levels
        if isinstance(level.operator, Full) and level.query.shape[2] >= LEAST_SITES
    ]
    return torch.stack(terms).mean() if terms else origin.new_zeros(())


def level_loss(
    level: Level, origin: Float[Tensor, "b h w 2"], known: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    height, width = level.size
    place = F.adaptive_avg_pool2d(rearrange(origin, "b h w c -> b c h w"), level.size)
    weight = F.adaptive_avg_pool2d(known[:, None].float(), level.size).flatten(1)
    x = (place[:, 0].flatten(1) + 1) * width / 2 - 0.5
    y = (place[:, 1].flatten(1) + 1) * height / 2 - 0.5
    logits = affinities(level)
    wanted = tent(y, height)[..., :, None] * tent(x, width)[..., None, :]  # (b, n, height, width)
    terms = -(wanted.flatten(2) * logits.log_softmax(dim=2)).sum(dim=2)
    weight = weight * (weight > 0.5)
    return (terms * weight).sum() / weight.sum().clamp(min=1)


def affinities(level: Level) -> Float[Tensor, "b n n_k"]:
    """The logits of a level of full attention, in float32."""
    assert isinstance(level.operator, Full)
    query, key = level.query[:, 0].float(), level.key[:, 0].float()
    if level.operator.affinity == "euclidean":
        return -torch.cdist(query, key).square()
    return query @ key.mT


def tent(x: Float[Tensor, "b n"], length: int) -> Float[Tensor, "b n length"]:
    """Linear weights of the two whole numbers beside x."""
    numbers = torch.arange(length, device=x.device)
    return (1 - (x[..., None] - numbers).abs()).clamp(min=0)
