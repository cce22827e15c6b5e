"""Looking at attention: what it costs, how much of it a selection keeps, and where it goes."""

from ndgpa.analysis.cost import AffinityEntries, full_entries, gpa_entries, low_rank_entries
from ndgpa.analysis.coverage import coverage
from ndgpa.analysis.key_lines import draw_key_lines
from ndgpa.analysis.key_weights import key_weights
from ndgpa.analysis.memory import peak_bytes

__all__ = [
    "AffinityEntries",
    "coverage",
    "draw_key_lines",
    "full_entries",
    "gpa_entries",
    "key_weights",
    "low_rank_entries",
    "peak_bytes",
]
