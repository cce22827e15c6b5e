"""Counts of the entries of an affinity matrix that an attention computes."""

from dataclasses import dataclass

from ndgpa import arguments
from ndgpa.structures import SpatialStructure


@dataclass(frozen=True)
class AffinityEntries:
    """Count the entries of the affinity matrices of one head and one sample.

    In float32 each takes 4 bytes.

    Args:
        phase_1: Query blocks times key blocks.
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
    """Count the entries of GPA where each cell reads k blocks of the largest size.

    Source: Section 2.2 of Jetchev et al. 2021. With n' blocks, Phase 1 has n'^2 entries (the
    paper's O(n^2/d^2) is an upper bound) and Phase 2 has n d^2 k.

    Raises:
        ValueError, TypeError: k is not an int of at least 1.
    """
    arguments.positive_count("k", k)
    key_structure = structure if key_structure is None else key_structure
    keys = min(k, key_structure.num_blocks) * key_structure.sites_per_block
    return AffinityEntries(
        structure.num_blocks * key_structure.num_blocks,
        structure.num_sites * min(keys, key_structure.num_sites),
    )


def full_entries(queries: int, keys: int | None = None) -> int:
    """Count the entries of full attention; None as `keys` means as many as queries."""
    return queries * (queries if keys is None else keys)


def low_rank_entries(rank: int, queries: int, keys: int | None = None) -> int:
    """Count the entries of both factors of a low-rank attention (Nystromformer, Performer)."""
    return rank * (queries + (queries if keys is None else keys))
