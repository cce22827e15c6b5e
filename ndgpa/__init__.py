"""Grid Partitioned Attention over any space."""

from ndgpa.functional import attend, gpa, select
from ndgpa.selection import Selection, TopK
from ndgpa.structures import Clusters, Grid, Image, Sequence, SpatialStructure, Video

__version__ = "0.1.0"

__all__ = [
    "Clusters",
    "Grid",
    "Image",
    "Selection",
    "Sequence",
    "SpatialStructure",
    "TopK",
    "Video",
    "attend",
    "gpa",
    "select",
]
