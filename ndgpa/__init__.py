"""Grid Partitioned Attention over any space.

    out = ndgpa.gpa(query, key, value, ndgpa.Image((256, 256), block=4, cell=2), rule=12)

Spaces: `Sequence`, `Image`, `Video`, `Grid`, `Graph`, `PointCloud`, `Clusters`, `disjoint`.
Rules, which say what a cell reads: `TopK`, `TopP`, `TopRatio`, `MultiLevel`, `Window`, ...
Layers are in `ndgpa.nn`, other attentions in `ndgpa.operators`, settings of published methods in
`ndgpa.presets`, measures in `ndgpa.analysis`.
"""

# `X as X` re-exports a name. There is no `__all__`: `help(ndgpa)` would print every class in full.

from ndgpa import (
    nn as nn,
    presets as presets,
)
from ndgpa.analysis.suggest import suggest as suggest
from ndgpa.attention.far_field import Bundles as Bundles
from ndgpa.attention.scores import Scores as Scores
from ndgpa.cache import Cache as Cache
from ndgpa.functional import (
    attend as attend,
    gpa as gpa,
    select as select,
)
from ndgpa.operators import (
    GPA as GPA,
    Full as Full,
    Operator as Operator,
)
from ndgpa.problem import (
    Problem as Problem,
    Selection as Selection,
)
from ndgpa.selection import (
    Codebook as Codebook,
    Fixed as Fixed,
    MultiLevel as MultiLevel,
    Own as Own,
    PerHead as PerHead,
    PerturbedTopK as PerturbedTopK,
    Propagate as Propagate,
    Refine as Refine,
    Rule as Rule,
    SoftTopK as SoftTopK,
    StraightThrough as StraightThrough,
    TopK as TopK,
    TopP as TopP,
    TopRatio as TopRatio,
    Window as Window,
)
from ndgpa.structures import (
    Clusters as Clusters,
    Graph as Graph,
    Grid as Grid,
    Image as Image,
    PointCloud as PointCloud,
    Sequence as Sequence,
    SpatialStructure as SpatialStructure,
    Video as Video,
    disjoint as disjoint,
    with_tokens as with_tokens,
)

__version__ = "0.1.0"
