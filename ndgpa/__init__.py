"""Grid Partitioned Attention over any space.

    out = ndgpa.gpa(query, key, value, ndgpa.Image((256, 256), block=4, cell=2), rule=12)

Spaces: `Sequence`, `Image`, `Video`, `Grid`, `Graph`, `PointCloud`, `Clusters`, `disjoint`.
Rules, which say what a cell reads: `TopK`, `TopP`, `TopRatio`, `MultiLevel`, `Window`, ...
Layers are in `ndgpa.nn`, other attentions in `ndgpa.operators`, settings of published methods in
`ndgpa.presets`, measures in `ndgpa.analysis`.
"""

from ndgpa import nn, presets
from ndgpa.cache import Cache
from ndgpa.functional import attend, gpa, select
from ndgpa.operators import GPA, Full, Operator
from ndgpa.problem import Problem, Selection
from ndgpa.selection import (
    Fixed,
    MultiLevel,
    Own,
    PerHead,
    PerturbedTopK,
    Refine,
    Rule,
    SoftTopK,
    StraightThrough,
    TopK,
    TopP,
    TopRatio,
    Window,
)
from ndgpa.structures import (
    Clusters,
    Graph,
    Grid,
    Image,
    PointCloud,
    Sequence,
    SpatialStructure,
    Video,
    disjoint,
)

__version__ = "0.1.0"

__all__ = [
    "GPA",
    "Cache",
    "Clusters",
    "Fixed",
    "Full",
    "Graph",
    "Grid",
    "Image",
    "MultiLevel",
    "Operator",
    "Own",
    "PerHead",
    "PerturbedTopK",
    "PointCloud",
    "Problem",
    "Refine",
    "Rule",
    "Selection",
    "Sequence",
    "SoftTopK",
    "SpatialStructure",
    "StraightThrough",
    "TopK",
    "TopP",
    "TopRatio",
    "Video",
    "Window",
    "attend",
    "disjoint",
    "gpa",
    "nn",
    "presets",
    "select",
]
