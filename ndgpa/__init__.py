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
from ndgpa.structures import Clusters, Grid, Image, PointCloud, Sequence, SpatialStructure, Video

__version__ = "0.1.0"

__all__ = [
    "GPA",
    "Clusters",
    "Full",
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
    "gpa",
    "nn",
    "select",
]
