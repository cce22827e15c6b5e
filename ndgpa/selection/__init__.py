"""The second question: which key blocks does each place read? (Phase 1)"""

from ndgpa.selection.antidiagonal import Antidiagonal
from ndgpa.selection.base import Rule, Union
from ndgpa.selection.coarse import Coarse, coarse_level
from ndgpa.selection.codebook import Codebook
from ndgpa.selection.fixed import Fixed
from ndgpa.selection.multi_level import MultiLevel
from ndgpa.selection.own import Own
from ndgpa.selection.per_head import PerHead
from ndgpa.selection.perturbed_top_k import PerturbedTopK
from ndgpa.selection.propagate import Propagate
from ndgpa.selection.refine import Refine
from ndgpa.selection.soft_top_k import SoftTopK
from ndgpa.selection.straight_through import StraightThrough
from ndgpa.selection.top_k import TopK
from ndgpa.selection.top_p import TopP
from ndgpa.selection.top_ratio import TopRatio
from ndgpa.selection.window import Window

__all__ = [
    "Antidiagonal",
    "Coarse",
    "Codebook",
    "Fixed",
    "MultiLevel",
    "Own",
    "PerHead",
    "PerturbedTopK",
    "Propagate",
    "Refine",
    "Rule",
    "SoftTopK",
    "StraightThrough",
    "TopK",
    "TopP",
    "TopRatio",
    "Union",
    "Window",
    "coarse_level",
]
