"""As many blocks as it takes to reach a share of the relevance."""

from dataclasses import dataclass

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.forced import check_force
from ndgpa.selection.relevance import SHARE, Share
from ndgpa.selection.select_blocks import most_relevant


@dataclass(frozen=True)
class TopP(Rule):
    """Each cell reads its most relevant key blocks until they hold `p` of its relevance.

    The block that reaches p is the last one read; of equals the lowest id comes first. Cells with
    spread attention read many blocks, others few, so rows differ in length.

    Source: nucleus sampling (Holtzman et al. 2020), as SVG2 and XAttention apply it to blocks.

    Args:
        p: The share of relevance, in (0, 1]. Forced blocks do not count towards it.
        at_least, at_most: Limits on the number of blocks of a cell, the forced ones aside; None is
            no limit. The selection is a table with room for `at_most`, of which `attend` looks at
            the slots that are filled.
        share, force: As for `TopK`.

    Raises:
        ValueError, TypeError: p outside (0, 1], limits that exclude each other, or as for `TopK`.
    """

    p: float
    at_least: int = 1
    at_most: int | None = None
    share: Share = "head"
    force: Rule | None = None

    def __post_init__(self) -> None:
        arguments.share_of("p", self.p)
        arguments.bounds(self.at_least, self.at_most)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)

    def select(self, problem: Problem) -> Selection:
        most = problem.key_structure.num_blocks if self.at_most is None else self.at_most
        return Selection(
            most_relevant(
                problem,
                most,
                share=self.share,
                force=self.force,
                p=self.p,
                at_least=self.at_least,
            )
        )
