"""Grid Partitioned Attention over any space."""

from ndgpa import nn
from ndgpa.functional import attend, gpa, select
from ndgpa.operators import (
    GPA,
    Full,
    Hydra,
    LocalSparse,
    MultiAxis,
    Neighborhood,
    Nothing,
    Nystrom,
    Performer,
)
from ndgpa.selection import Selection, TopK
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
    "Clusters",
    "Full",
    "Graph",
    "Grid",
    "Hydra",
    "Image",
    "LocalSparse",
    "MultiAxis",
    "Neighborhood",
    "Nothing",
    "Nystrom",
    "Performer",
    "PointCloud",
    "Selection",
    "Sequence",
    "SpatialStructure",
    "TopK",
    "Video",
    "attend",
    "disjoint",
    "gpa",
    "nn",
    "select",
]
