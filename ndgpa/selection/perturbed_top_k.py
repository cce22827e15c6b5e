"""Top-k of noisy relevance: how often a block is chosen is differentiable."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndgpa import _checks
from ndgpa.selection.base import Problem, Rule, Selection
from ndgpa.selection.soft import log_relevance, weighted
from ndgpa.selection.top_k import SHARE, top_k_lowest_id


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
    share: str = "head"

    def __post_init__(self) -> None:
        _checks.positive_count("k", self.k)
        _checks.positive("sigma", self.sigma)
        _checks.positive_count("samples - 1", self.samples - 1)
        _checks.bounds(1, self.at_most)
        _checks.one_of("share", self.share, SHARE)

    def select(self, problem: Problem) -> Selection:
        scores = log_relevance(problem, self.share)
        seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        k = min(self.k, scores.shape[-1])
        weight = _Chosen.apply(scores, k, self.sigma, self.samples, seed)
        most = self.k * self.samples if self.at_most is None else self.at_most
        return weighted(weight, most, problem)


class _Chosen(torch.autograd.Function):
    """The share of samples in which each block is among the k best; noise is drawn twice, not kept.

    d E[y(s + sigma Z)] / ds = E[(y - E y) Z] / sigma, a product with the incoming gradient. The
    mean over the samples stands for E y, hence one less in the divisor, as for a variance.
    """

    @staticmethod
    def forward(
        scores: Float[Tensor, "*batch B"], k: int, sigma: float, samples: int, seed: int
    ) -> Float[Tensor, "*batch B"]:
        weight = torch.zeros_like(scores)
        for _, ids, seen in _draws(scores, k, sigma, samples, seed):
            weight.scatter_add_(-1, ids, seen / samples)
        return weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.options = inputs[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weight = ctx.saved_tensors
        _, sigma, samples, _ = ctx.options
        mean = (grad * weight).sum(dim=-1, keepdim=True)
        total = torch.zeros_like(scores)
        for noise, ids, seen in _draws(scores, *ctx.options):
            gain = (grad.gather(-1, ids) * seen).sum(dim=-1, keepdim=True)
            total += (gain - mean) * noise
        total = total.masked_fill(scores == -torch.inf, 0)
        return total / (sigma * (samples - 1)), None, None, None, None


def _draws(
    scores: Tensor, k: int, sigma: float, samples: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noise, the k best under it, and 1 where such a block may be chosen at all."""
    generator = torch.Generator(scores.device).manual_seed(seed)
    for _ in range(samples):
        noise = torch.randn(
            scores.shape, generator=generator, dtype=scores.dtype, device=scores.device
        )
        ids = top_k_lowest_id(scores + sigma * noise, k)
        yield noise, ids, (scores.gather(-1, ids) > -torch.inf).to(scores.dtype)
