"""Looking at attention: what it costs."""

from ndgpa.analysis.cost import AffinityEntries, full_entries, gpa_entries, low_rank_entries

__all__ = ["AffinityEntries", "full_entries", "gpa_entries", "low_rank_entries"]
