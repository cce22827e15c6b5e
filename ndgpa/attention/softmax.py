"""The softmax of a tile of logits: the one formula under every engine that works in chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Softmax:
    """The weights of each query's keys, differentiable to any order.

    logits (..., X, Y) and weights (..., X, Y) are 0 throughout for a query that sees nothing;
    masked (..., X, 1) says which those are, None where there are none.
    """

    logits: Tensor
    weights: Tensor
    masked: Tensor | None

    @property
    def lse(self) -> Tensor:  # (..., X)
        """The log-sum-exp of the logits; -inf for a query that sees nothing.

        Its value follows from the largest logit and the largest weight, a pass cheaper; but not its
        derivatives, for of several that are largest, only all together bend as it does.
        """
        if self.logits.requires_grad:
            lse = self.logits.logsumexp(dim=-1)
        else:
            lse = self.logits.amax(dim=-1) - self.weights.amax(dim=-1).log()
        return lse if self.masked is None else lse.masked_fill(self.masked[..., 0], -torch.inf)


def softmax(logits: Tensor, may_see_nothing: bool = True) -> Softmax:  # (..., X, Y)
    """Normalise over the keys; a hidden key has a logit of -inf.

    Args:
        may_see_nothing: Whether all keys may be hidden from a query.
    """
    if not may_see_nothing:
        return Softmax(logits, logits.softmax(dim=-1), None)
    masked = logits.amax(dim=-1, keepdim=True) == -torch.inf
    logits = logits.masked_fill(masked, 0)
    return Softmax(logits, logits.softmax(dim=-1).masked_fill(masked, 0), masked)
