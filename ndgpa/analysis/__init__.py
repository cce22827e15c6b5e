"""Looking at attention: what it costs, who hears of whom, which keys matter."""

from ndgpa.analysis.cost import AffinityEntries, full_entries, gpa_entries, low_rank_entries
from ndgpa.analysis.information_flow import (
    fewest_steps,
    has_full_information,
    information_flow,
    path_counts,
    picture_of_flow,
    picture_of_masks,
)
from ndgpa.analysis.maps import attention_map, over_the_grid, saliency

__all__ = [
    "AffinityEntries",
    "attention_map",
    "fewest_steps",
    "full_entries",
    "gpa_entries",
    "has_full_information",
    "information_flow",
    "low_rank_entries",
    "over_the_grid",
    "path_counts",
    "picture_of_flow",
    "picture_of_masks",
    "saliency",
]
