"""The first question: what is the space?"""

from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.clusters import Clusters
from ndgpa.structures.disjoint import disjoint
from ndgpa.structures.graph import Graph
from ndgpa.structures.grid import Grid, Image, Sequence, Video
from ndgpa.structures.points import PointCloud
from ndgpa.structures.sampling import Halo, Jittered, Sampling, Strided
from ndgpa.structures.tables import cached
from ndgpa.structures.tokens import with_tokens
from ndgpa.structures.visible import visible

__all__ = [
    "Clusters",
    "Graph",
    "Grid",
    "Halo",
    "Image",
    "Jittered",
    "PointCloud",
    "Sampling",
    "Sequence",
    "SpatialStructure",
    "Strided",
    "Video",
    "cached",
    "disjoint",
    "visible",
    "with_tokens",
]
