"""Top-k relaxed to a projection: a few blocks of weight 1, a few between, the rest exactly 0."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.relevance import SHARE, Share
from ndgpa.selection.soft import log_relevance, weighted


@dataclass(frozen=True)
class SoftTopK(Rule):
    """Weights in [0, 1] that sum to k, nearest to log relevance / temperature.

    As the temperature falls the weights become those of the hard rule. Blocks of weight 0 are not
    read, so the selection stays sparse. The weights enter the attention through the bias of their
    slots.

    Source: the quadratic regularisation of Blondel et al. 2020, "Fast differentiable sorting and
    ranking": the projection onto the permutahedron of k ones and else zeros.

    Args:
        k: The sum of the weights of a cell.
        temperature: In units of log relevance (nats).
        at_most: Slots of each cell: the blocks of greatest weight; None means room for all.
        share: As for `TopK`.

    Raises:
        ValueError, TypeError: A count below 1, a temperature that is not positive, unknown words.
    """

    k: int
    temperature: float = 1.0
    at_most: int | None = None
    share: Share = "head"

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.positive("temperature", self.temperature)
        arguments.bounds(1, self.at_most)
        arguments.one_of("share", self.share, SHARE)

    def select(self, problem: Problem) -> Selection:
        scores = log_relevance(problem, self.share)
        return weighted(project(scores / self.temperature, self.k), self.at_most, problem)


def project(x: Float[Tensor, "*batch B"], k: int) -> Float[Tensor, "*batch B"]:
    """The point of {0 <= w <= 1, sum w = k} nearest to x: clip(x - tau, 0, 1) for one tau.

    -inf has weight 0; where no more than k are finite, all of them have weight 1. Differentiable.
    """
    seen = x > -torch.inf
    count = seen.sum(dim=-1, keepdim=True)
    fixed = x.detach().masked_fill(~seen, 0)
    low = x.detach().masked_fill(~seen, torch.inf).amin(dim=-1, keepdim=True) - 1
    high = fixed.masked_fill(~seen, -torch.inf).amax(dim=-1, keepdim=True)
    for _ in range(64):  # to the last bit of float64
        tau = (low + high) / 2
        over = ((fixed - tau).clamp(0, 1) * seen).sum(dim=-1, keepdim=True) > k
        low, high = torch.where(over, tau, low), torch.where(over, high, tau)
    whole = (fixed - high >= 1) & seen
    between = (fixed - high > 0) & ~whole & seen
    left = k - whole.sum(dim=-1, keepdim=True)
    total = x.masked_fill(~between, 0).sum(dim=-1, keepdim=True)
    tau = (total - left) / between.sum(dim=-1, keepdim=True).clamp(min=1)
    weight = (x.masked_fill(~between, 0) - tau).clamp(0, 1)
    weight = weight.masked_fill(~between, 0) + whole
    return torch.where(count <= k, seen.to(x.dtype), weight)
