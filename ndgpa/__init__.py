"""Grid Partitioned Attention over any space."""

from ndgpa import nn
from ndgpa.functional import attend, gpa, select
from ndgpa.operators import GPA, Full, Nothing
from ndgpa.selection import (
    Fixed,
    MultiLevel,
    Neighborhood,
    PerHead,
    PerturbedTopK,
    Selection,
    SoftTopK,
    StraightThrough,
    TopK,
    TopP,
    TopRatio,
    Union,
    Window,
)
from ndgpa.structures import Clusters, Grid, Image, Sequence, SpatialStructure, Video

__version__ = "0.1.0"

__all__ = [
    "GPA",
    "Clusters",
    "Fixed",
    "Full",
    "Grid",
    "Image",
    "MultiLevel",
    "Neighborhood",
    "Nothing",
    "PerHead",
    "PerturbedTopK",
    "Selection",
    "Sequence",
    "SoftTopK",
    "SpatialStructure",
    "StraightThrough",
    "TopK",
    "TopP",
    "TopRatio",
    "Union",
    "Video",
    "Window",
    "attend",
    "gpa",
    "nn",
    "select",
]
