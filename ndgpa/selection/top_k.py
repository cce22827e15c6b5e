"""The paper's rule: for each cell, the k most relevant key blocks."""

from dataclasses import dataclass

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.coarse import STAND_INS, StandIn
from ndgpa.selection.forced import check_force
from ndgpa.selection.relevance import RELEVANCE, SHARE, Relevance, Share
from ndgpa.selection.select_blocks import most_relevant


@dataclass(frozen=True)
class TopK(Rule):
    """Each cell reads the k most relevant key blocks; of equals, those of lowest id.

    By default the mean of its sites stands for each block, as in the paper. Where the sites of a
    block are unlike each other, a mean says little, and one of them says more for the same cost:
    `estimate="site"` takes the middle one, which finds up to three times as much on photographs
    (docs/far_field.md). Name more that way than are read, and keep the best by a second look:
    `Refine(TopK(48, estimate="site"), 12, estimate="site")`.

    Source: R_kappa and Phase 1 of Algorithm 1 of Jetchev et al. 2021. The selection carries no
    gradient.

    Args:
        k: Blocks to keep for each cell (the paper's kappa); more than there are means all.
        relevance: "mass" sums the coarse softmax weights over the queries of a cell (the paper);
            "logit" sums the logits.
        share: Who shares one selection: "head" no two heads, "group" the query heads of one key
            head, "all" all heads. Relevance is summed over those who share.
        force: A rule whose blocks are always read, in addition to the k: `Own()`, `Fixed((0,))`,
            `Own() | Window(1)`, or any other without a bias. Its blocks are no candidates.
        estimate: What stands for a block of queries or keys: "mean", the mean of its seen sites, or
            "site", of m seen sites number m // 2, in the order in which the structure lists them.

    Raises:
        ValueError, TypeError: k below 1, an unknown word, or a `force` that is not a rule, has a
            bias, or selects for more heads than there are selections.
        NotImplementedError: "site", and only the means of the keys are at hand.
    """

    k: int
    relevance: Relevance = "mass"
    share: Share = "head"
    force: Rule | None = None
    estimate: StandIn = "mean"

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.one_of("relevance", self.relevance, RELEVANCE)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)
        arguments.one_of("estimate", self.estimate, STAND_INS)

    def select(self, problem: Problem) -> Selection:
        found = most_relevant(
            problem, self.k, self.relevance, self.share, self.force, estimate=self.estimate
        )
        return Selection(
            found,
            full=self.force is None and _shows_all(problem),
        )


def _shows_all(problem: Problem) -> bool:
    """Whether every cell may read every key block."""
    grouped = problem.structure.group is not None and problem.key_structure.group is not None
    return not problem.causal and problem.key_mask is None and not grouped
