"""A share of the blocks that there are, instead of a number of them."""

from dataclasses import dataclass
from fractions import Fraction

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.forced import check_force
from ndgpa.selection.relevance import RELEVANCE, SHARE, Relevance, Share
from ndgpa.selection.select_blocks import most_relevant

# Of the fraction that a ratio is taken for: 0.29 is 29/100 and 1 / 3 is 1/3, whatever a float makes
# of them. A product with the number of blocks still fits an int64.
_DENOMINATOR = 10**8


@dataclass(frozen=True)
class TopRatio(Rule):
    """Each cell reads the most relevant `ratio` of the key blocks that it may choose from.

    A cell may choose from the blocks of its group and, if causal, of the past; so rows differ in
    length. The number is rounded down, exactly: 0.29 of 100 blocks is 29.

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
    relevance: Relevance = "mass"
    share: Share = "head"
    force: Rule | None = None

    def __post_init__(self) -> None:
        arguments.share_of("ratio", self.ratio)
        arguments.positive_count("at_least", self.at_least)
        arguments.one_of("relevance", self.relevance, RELEVANCE)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)

    def select(self, problem: Problem) -> Selection:
        structure, key_structure = problem.structure, problem.key_structure
        ratio = Fraction(self.ratio).limit_denominator(_DENOMINATOR)
        limit = key_structure.num_blocks * ratio.numerator // ratio.denominator
        counts = None
        if problem.causal or structure.group is not None:
            counts = structure.count_candidates(key_structure, problem.causal)
            counts = (counts * ratio.numerator // ratio.denominator).clamp(min=self.at_least)
        return Selection(
            most_relevant(
                problem,
                max(self.at_least, limit),
                self.relevance,
                self.share,
                self.force,
                counts=counts,
            )
        )
