"""The second question: which key blocks does each place read? (Phase 1)"""

from ndgpa.selection.base import Coarse, Problem, Rule, Selection
from ndgpa.selection.fixed import Fixed
from ndgpa.selection.neighborhood import Neighborhood, Window
from ndgpa.selection.per_head import PerHead
from ndgpa.selection.top_k import TopK
from ndgpa.selection.top_p import TopP
from ndgpa.selection.top_ratio import TopRatio
from ndgpa.selection.union import Union

__all__ = [
    "Coarse",
    "Fixed",
    "Neighborhood",
    "PerHead",
    "Problem",
    "Rule",
    "Selection",
    "TopK",
    "TopP",
    "TopRatio",
    "Union",
    "Window",
]
