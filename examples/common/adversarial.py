"""Adversarial losses by name, and a penalty on gradients, from the logits of a discriminator."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def lazy_adam(
    parameters: Iterable[Tensor], rate: float, every: int, beta: float = 0.99
) -> torch.optim.Adam:
    """Make an Adam for a network that is penalised in every `every`-th step only.

    Source: Karras et al. 2020, appendix B: as if penalties were steps of their own.
    """
    share = every / (every + 1) if every > 1 else 1.0
    return torch.optim.Adam(parameters, share * rate, betas=(0.0, beta**share), fused=True)


def balanced_consistency(
    score: Callable[[Tensor], Scores],
    real: Tensor,
    fake: Tensor,
    change: Callable[[Tensor], Tensor],
) -> Float[Tensor, ""]:
    """How much scores move when pictures are augmented (bCR, Zhao et al. 2021), real and made."""
    terms = [F.mse_loss(score(change(x)), score(x)) for x in (real, fake)]
    return torch.stack(terms).sum()


class PathLength(nn.Module):
    """StyleGAN2's penalty on how unevenly pictures move with their styles.

    The length of a random direction's gradient is held to its own running mean.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(
        self,
        of_styles: Callable[[Tensor], Float[Tensor, "b 3 h w"]],
        styles: Float[Tensor, "b k style"],
    ) -> Float[Tensor, ""]:
        """Return the penalty, and move the running mean.

        Args:
            of_styles: Makes pictures of styles.
            styles: On the graph of what shall learn from it.
        """
        with twice_differentiable():
            picture = of_styles(styles)
        direction = torch.randn_like(picture) / (picture.shape[2] * picture.shape[3]) ** 0.5
        (slope,) = torch.autograd.grad((picture * direction).sum(), styles, create_graph=True)
        length = slope.square().sum(dim=2).mean(dim=1).sqrt()
        self.mean.lerp_(length.detach().mean(), self.decay)
        return (length - self.mean).square().mean()


def r1(
    score: Callable[[Tensor], Scores], picture: Float[Tensor, "b 3 h w"], gamma: float
) -> Float[Tensor, ""]:
    """Gamma times the mean squared norm of the gradient at real pictures (Mescheder et al. 2018).

    HiT's gamma is 10 with no half and in every step; StyleGAN2's 10/2 in every 16th, times 16.
    """
    picture = picture.detach().requires_grad_()
    with twice_differentiable():
        total = score(picture).sum()
    (gradient,) = torch.autograd.grad(total, picture, create_graph=True)
    return gamma * gradient.square().sum(dim=(1, 2, 3)).mean()


def twice_differentiable() -> AbstractContextManager[None]:
    """Attend by torch's plain attention, as its fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)
