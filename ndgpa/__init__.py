"""Grid Partitioned Attention over any space."""

from ndgpa import nn, presets
from ndgpa.cache import Cache
from ndgpa.functional import attend, gpa, select
from ndgpa.operators import GPA, Full, Nothing
from ndgpa.selection import (
    Antidiagonal,
    Fixed,
    MultiLevel,
    Neighborhood,
    Own,
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
from ndgpa.structures import (
    Clusters,
    Grid,
    Halo,
    Image,
    Jittered,
    PointCloud,
    Sequence,
    SpatialStructure,
    Strided,
    Video,
)

__version__ = "0.1.0"

__all__ = [
    "GPA",
    "Antidiagonal",
    "Cache",
    "Clusters",
    "Fixed",
    "Full",
    "Grid",
    "Halo",
    "Image",
    "Jittered",
    "MultiLevel",
    "Neighborhood",
    "Nothing",
    "Own",
    "PerHead",
    "PerturbedTopK",
    "PointCloud",
    "Selection",
    "Sequence",
    "SoftTopK",
    "SpatialStructure",
    "StraightThrough",
    "Strided",
    "TopK",
    "TopP",
    "TopRatio",
    "Union",
    "Video",
    "Window",
    "attend",
    "gpa",
    "nn",
    "presets",
    "select",
]
