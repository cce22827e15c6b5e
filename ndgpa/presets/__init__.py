"""The paper's configurations and published peers, each as structures and an operator.

A preset takes the parameters of the original and reproduces its result: which blocks are read, what
counts towards k, how ties are broken, the scale, the padding. Call it with query, key and value in
natural order, laid out as in `ndgpa.gpa`:

    preset = ndgpa.presets.vsa((8, 16, 16), sparsity=0.9)
    out = preset(query, key, value)
"""

from ndgpa.presets.base import Preset
from ndgpa.presets.bi_level import biformer
from ndgpa.presets.clustered import k_means, svg2
from ndgpa.presets.language import moba, nsa_selection, xattention
from ndgpa.presets.paper import chal, paper_pivot
from ndgpa.presets.quadtree import quadtree_b
from ndgpa.presets.video_sparse import vsa

__all__ = [
    "Preset",
    "biformer",
    "chal",
    "k_means",
    "moba",
    "nsa_selection",
    "paper_pivot",
    "quadtree_b",
    "svg2",
    "vsa",
    "xattention",
]
