"""The paper's rule: for each cell, the k most relevant key blocks."""

from dataclasses import dataclass

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.forced import check_force
from ndgpa.selection.relevance import RELEVANCE, SHARE, Relevance, Share
from ndgpa.selection.select_blocks import most_relevant


@dataclass(frozen=True)
class TopK(Rule):
    """Each cell reads the k most relevant key blocks; of equals, those of lowest id.

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

    Raises:
        ValueError, TypeError: k below 1, an unknown word, or a `force` that is not a rule, has a
            bias, or selects for more heads than there are selections.
    """

    k: int
    relevance: Relevance = "mass"
    share: Share = "head"
    force: Rule | None = None

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.one_of("relevance", self.relevance, RELEVANCE)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)

    def select(self, problem: Problem) -> Selection:
        return Selection(
            most_relevant(problem, self.k, self.relevance, self.share, self.force),
            full=self.force is None and _shows_all(problem),
        )


def _shows_all(problem: Problem) -> bool:
    """Whether every cell may read every key block."""
    grouped = problem.structure.group is not None and problem.key_structure.group is not None
    return not problem.causal and problem.key_mask is None and not grouped
