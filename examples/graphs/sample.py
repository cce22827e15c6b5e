"""What the networks are given, and what they are to say."""

from typing import NamedTuple

from torch import Tensor

import ndgpa


class Sample(NamedTuple):
    """One problem on one graph."""

    x: Tensor  # (n, inputs)
    y: Tensor  # (n,) wanted
    edge_index: Tensor  # (2, E)
    structure: ndgpa.SpatialStructure
