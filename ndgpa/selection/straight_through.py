"""A hard rule with a gradient: the forward is the rule's own, bit for bit."""

from dataclasses import dataclass, replace

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule, check_rules
from ndgpa.selection.relevance import Share
from ndgpa.selection.soft import log_relevance


@dataclass(frozen=True)
class StraightThrough(Rule):
    """What `rule` selects, with a gradient to the coarse queries and keys.

    Each slot gets the bias log r - stop(log r), r being the relevance of its block: zero in the
    forward, so nothing changes; in the backward, what the attention would gain from more or less
    of a block reaches the relevance, and by its softmax also the blocks that were not selected.

    Source: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".

    Args:
        rule: The hard rule.

    Raises:
        TypeError: It is no rule.
    """

    rule: Rule

    def __post_init__(self) -> None:
        check_rules("StraightThrough", (self.rule,))

    def select(self, problem: Problem) -> Selection:
        hard = self.rule.select(problem)
        soft = log_relevance(problem, _share(hard.blocks.shape[1], problem))
        slot = soft.gather(-1, hard.blocks.clamp(min=0).long())
        slot = slot.masked_fill((hard.blocks < 0) | slot.isneginf(), 0)
        bias = slot - slot.detach()
        return replace(hard, bias=bias if hard.bias is None else hard.bias + bias)


def _share(count: int, problem: Problem) -> Share:
    """Who shares a selection where there are `count` of them."""
    if count == problem.key.shape[1]:
        return "group"
    return "head" if count == problem.query.shape[1] else "all"
