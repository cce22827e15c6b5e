"""Adversarial losses by name, and a penalty on gradients, from the logits of a discriminator."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, " b"]


def non_saturating(real: Scores, fake: Scores) -> Float[Tensor, ""]:
    """softplus(-D(real)) + softplus(D(G)), the discriminator's loss."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Scores) -> Float[Tensor, ""]:
    """softplus(-D(G))."""
    return F.softplus(-fake).mean()


def hinge(real: Scores, fake: Scores) -> Float[Tensor, ""]:
    """The discriminator's loss of SAGAN."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Scores) -> Float[Tensor, ""]:
    return -fake.mean()


LOSSES = {
    "non_saturating": (non_saturating, non_saturating_generator),
    "hinge": (hinge, hinge_generator),
}


def r1(
    score: Callable[[Tensor], Scores], picture: Float[Tensor, "b 3 h w"], gamma: float
) -> Float[Tensor, ""]:
    """Gamma times the mean squared norm of the gradient at real pictures (Mescheder et al. 2018).

    HiT's gamma is 10 with no half and in every step; StyleGAN2's 10/2 in every 16th, times 16.
    """
    picture = picture.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(picture).sum(), picture, create_graph=True)
    return gamma * gradient.square().sum(dim=(1, 2, 3)).mean()
