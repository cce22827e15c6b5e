"""Measures and pictures of attention: its cost, what a selection keeps, where it goes."""

from ndgpa.analysis.cost import AffinityEntries, full_entries, gpa_entries, low_rank_entries
from ndgpa.analysis.coverage import coverage
from ndgpa.analysis.information_flow import (
    fewest_steps,
    has_full_information,
    information_flow,
    path_counts,
    picture_of_masks,
    plot_flow,
)
from ndgpa.analysis.key_lines import draw_graph_key_lines, draw_key_lines
from ndgpa.analysis.key_weights import key_weights
from ndgpa.analysis.maps import attention_map, saliency, to_grid
from ndgpa.analysis.memory import peak_bytes
from ndgpa.analysis.suggest import suggest
from ndgpa.analysis.suggestion import Suggestion, Suggestions

__all__ = [
    "AffinityEntries",
    "Suggestion",
    "Suggestions",
    "attention_map",
    "coverage",
    "draw_graph_key_lines",
    "draw_key_lines",
    "fewest_steps",
    "full_entries",
    "gpa_entries",
    "has_full_information",
    "information_flow",
    "key_weights",
    "low_rank_entries",
    "path_counts",
    "peak_bytes",
    "picture_of_masks",
    "plot_flow",
    "saliency",
    "suggest",
    "to_grid",
]
