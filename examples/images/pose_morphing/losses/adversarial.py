"""The non-saturating GAN losses with a lazy gradient penalty, over (picture, pose) pairs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from examples.images.pose_morphing.model import Discriminator

GAMMA = 10.0  # of the gradient penalty
EVERY = 16  # steps between penalties, which then count as many times more


def generator_loss(fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """softplus(-D(G)), from the logits of made pictures."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """softplus(-D(real)) + softplus(D(G)), from logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(
    discriminator: Discriminator, image: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 18 h w"]
) -> Float[Tensor, ""]:
    """R1 of Mescheder et al. 2018: gamma / 2 times the mean squared gradient at real pictures."""
    image = image.detach().requires_grad_()
    logits = discriminator(image, maps)
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return GAMMA / 2 * gradient.square().sum((1, 2, 3)).mean()
