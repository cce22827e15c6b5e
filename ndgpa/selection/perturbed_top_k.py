"""Top-k of noisy relevance: how often a block is chosen is differentiable."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import fold_into_batch
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.ranking import top_k_lowest_id
from ndgpa.selection.relevance import SHARE, Share
from ndgpa.selection.soft import log_relevance, weighted


@dataclass(frozen=True)
class PerturbedTopK(Rule):
    """A block is read with the weight of how often it is among the k best under noise.

    Gaussian noise of standard deviation `sigma` is added to the log relevance of every block,
    `samples` times. The weights enter the attention through the bias of their slots. Blocks beyond
    the k best are tried in proportion to their chance, so they can be learnt about.

    Source: Berthet et al. 2020, "Learning with differentiable perturbed optimizers"; Cordonnier et
    al. 2021, "Differentiable patch selection for image recognition".

    Args:
        k: Blocks of each sample.
        sigma: Standard deviation of the noise, in units of log relevance (nats).
        samples: How many times noise is drawn; the gradient is an average over them.
        at_most: Slots of each cell: the blocks of greatest weight; None means room for all that the
            samples can name.
        seed: Of the noise; None takes one from torch's global generator at each call.
        share: As for `TopK`.

    Raises:
        ValueError, TypeError: A count below 1, less than two samples, a sigma that is not positive,
            an unknown word.
    """

    k: int
    sigma: float = 0.5
    samples: int = 16
    at_most: int | None = None
    seed: int | None = None
    share: Share = "head"

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.positive("sigma", self.sigma)
        arguments.positive_count("samples - 1", self.samples - 1)
        arguments.bounds(1, self.at_most)
        arguments.one_of("share", self.share, SHARE)

    def select(self, problem: Problem) -> Selection:
        scores = log_relevance(problem, self.share)
        seed = torch.randint(2**31, ()) if self.seed is None else torch.tensor(self.seed)
        k = min(self.k, scores.shape[-1])
        weight = chosen(scores, k=k, sigma=self.sigma, samples=self.samples, seed=seed)
        most = self.k * self.samples if self.at_most is None else self.at_most
        return weighted(weight, most, problem)


# Opaque operators, as torch.compile cannot capture a local Generator.
@torch.library.custom_op("ndgpa::perturbed_top_k", mutates_args=())
def chosen(scores: Tensor, k: int, sigma: float, samples: int, seed: Tensor) -> Tensor:
    """The share of samples in which each of the scores (*batch, B) is among the k best."""
    weight = torch.zeros_like(scores)
    for _, ids, seen in _draws(scores, k, sigma, samples, seed):
        weight.scatter_add_(-1, ids, seen / samples)
    return weight


@torch.library.custom_op("ndgpa::perturbed_top_k_backward", mutates_args=())
def _gradient(
    grad: Tensor, scores: Tensor, weight: Tensor, k: int, sigma: float, samples: int, seed: Tensor
) -> Tensor:
    """The gradient of the scores; noise is drawn again, not kept.

    d E[y(s + sigma Z)] / ds = E[(y - E y) Z] / sigma, a product with the incoming gradient. The
    mean over the samples stands for E y, hence one less in the divisor, as for a variance.
    """
    mean = (grad * weight).sum(dim=-1, keepdim=True)
    total = torch.zeros_like(scores)
    for noise, ids, seen in _draws(scores, k, sigma, samples, seed):
        gain = (grad.gather(-1, ids) * seen).sum(dim=-1, keepdim=True)
        total += (gain - mean) * noise
    return total.masked_fill(scores == -torch.inf, 0) / (sigma * (samples - 1))


def _draws(
    scores: Tensor, k: int, sigma: float, samples: int, seed: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noise, the k best under it, and 1 where such a block may be chosen at all."""
    generator = torch.Generator(scores.device).manual_seed(int(seed))
    for _ in range(samples):
        noise = torch.randn(
            scores.shape, generator=generator, dtype=scores.dtype, device=scores.device
        )
        ids = top_k_lowest_id(scores + sigma * noise, k)
        yield noise, ids, (scores.gather(-1, ids) > -torch.inf).to(scores.dtype)


@chosen.register_fake
def _(scores: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(scores)


@_gradient.register_fake
def _(grad: Tensor, scores: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(scores)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, ctx.k, ctx.sigma, ctx.samples, seed = inputs
    ctx.save_for_backward(scores, output, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, weight, seed = ctx.saved_tensors
    slope = _gradient(
        grad, scores, weight, k=ctx.k, sigma=ctx.sigma, samples=ctx.samples, seed=seed
    )
    return slope, None, None, None, None


chosen.register_autograd(_backward, setup_context=_save)
chosen.register_vmap(fold_into_batch(chosen, batched=1))
_gradient.register_vmap(fold_into_batch(_gradient, batched=3))
