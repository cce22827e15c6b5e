"""A share of the blocks that there are, instead of a number of them."""

import math
from dataclasses import dataclass

from ndgpa import _checks
from ndgpa.selection.base import Problem, Rule, Selection
from ndgpa.selection.causal import count_candidates
from ndgpa.selection.relevance import RELEVANCE
from ndgpa.selection.top_k import SHARE, as_tuple, most_relevant

# 0.29 * 100 falls short of 29 by rounding alone.
_SHORT = 1e-6


@dataclass(frozen=True)
class TopRatio(Rule):
    """Each cell reads the most relevant `ratio` of the key blocks that it may choose from.

    A cell may choose from the blocks of its group and, if causal, of the past; so rows differ in
    length. The number is rounded down.

    Source: int(r K) in SLA and SpargeAttn (Zhang et al. 2025).

    Args:
        ratio: The share to keep, in (0, 1].
        at_least: Blocks that are kept even where the ratio is less.
        relevance, share, force: As for `TopK`.

    Raises:
        ValueError, TypeError: A ratio outside (0, 1], or as for `TopK`.
    """

    ratio: float
    at_least: int = 1
    relevance: str = "mass"
    share: str = "head"
    force: tuple[int | str, ...] | int | str = ()

    def __post_init__(self) -> None:
        _checks.share_of("ratio", self.ratio)
        _checks.positive_count("at_least", self.at_least)
        _checks.one_of("relevance", self.relevance, RELEVANCE)
        _checks.one_of("share", self.share, SHARE)
        _checks.forced(as_tuple(self.force))

    def select(self, problem: Problem) -> Selection:
        limit = math.floor(self.ratio * problem.key_structure.num_blocks + _SHORT)
        counts = None
        if problem.causal or problem.structure.group is not None:
            share = self.ratio * count_candidates(problem).double() + _SHORT
            counts = share.floor().long().clamp(min=self.at_least)
        blocks = most_relevant(
            problem,
            max(self.at_least, limit),
            self.relevance,
            self.share,
            self.force,
            counts=counts,
        )
        return Selection(blocks)
