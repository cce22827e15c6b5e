"""How many entries of an affinity matrix an attention computes: the paper's memory argument."""

from dataclasses import dataclass

from ndgpa import arguments
from ndgpa.structures import SpatialStructure


@dataclass(frozen=True)
class AffinityEntries:
    """Entries of the affinity matrices of one head and one sample; float32 takes 4 bytes each.

    Args:
        phase_1: Coarse queries times coarse keys.
        phase_2: Queries times the keys that each reads.
    """

    phase_1: int
    phase_2: int

    @property
    def total(self) -> int:
        return self.phase_1 + self.phase_2


def gpa_entries(
    structure: SpatialStructure, k: int, key_structure: SpatialStructure | None = None
) -> AffinityEntries:
    """Entries that GPA computes when each cell reads k blocks, all of the largest size.

    Source: Section 2.2 of Jetchev et al. 2021. With n' blocks, Phase 1 has n'^2 entries (the
    paper's O(n^2/d^2) is an upper bound) and Phase 2 has n d^2 k.

    Raises:
        ValueError, TypeError: k is no int of at least 1.
    """
    arguments.positive_count("k", k)
    key_structure = structure if key_structure is None else key_structure
    keys = min(k, key_structure.num_blocks) * key_structure.sites_per_block
    return AffinityEntries(
        structure.num_blocks * key_structure.num_blocks,
        structure.num_sites * min(keys, key_structure.num_sites),
    )


def full_entries(queries: int, keys: int | None = None) -> int:
    """Entries of full attention; `keys` None means as many as queries."""
    return queries * (queries if keys is None else keys)


def low_rank_entries(rank: int, queries: int, keys: int | None = None) -> int:
    """Entries of the two factors of a low-rank attention (Nystromformer, Performer)."""
    return rank * (queries + (queries if keys is None else keys))
