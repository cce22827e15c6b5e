"""The second question: which key blocks does each place read? (Phase 1)"""

from ndgpa.selection.base import Coarse, Problem, Rule, Selection
from ndgpa.selection.top_k import TopK

__all__ = ["Coarse", "Problem", "Rule", "Selection", "TopK"]
