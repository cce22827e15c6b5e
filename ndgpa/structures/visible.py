"""Who may see whom, whatever the features say."""

from jaxtyping import Bool, Int
from torch import Tensor

from ndgpa.structures.base import SpatialStructure


def visible(
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    causal: bool,
    sites: Int[Tensor, " s"] | slice = slice(None),
) -> Bool[Tensor, "s n_k"] | None:
    """Say which keys the queries at `sites` may see: of their group, if causal of no later time.

    None means all.
    """
    seen = None
    if structure.group is not None and key_structure.group is not None:
        group = structure.group[structure.block_of_site[sites]]
        seen = group[:, None] == key_structure.group[key_structure.block_of_site]
    if causal:
        assert structure.time is not None
        assert key_structure.time is not None
        past = structure.time[sites][:, None] >= key_structure.time
        seen = past if seen is None else seen & past
    return seen
