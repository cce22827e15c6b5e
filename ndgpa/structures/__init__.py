"""The first question: what is the space?"""

from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.clusters import Clusters
from ndgpa.structures.grid import Grid, Image, Sequence, Video

__all__ = ["Clusters", "Grid", "Image", "Sequence", "SpatialStructure", "Video"]
