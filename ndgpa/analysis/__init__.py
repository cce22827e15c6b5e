"""Looking at attention: how much of it a selection keeps, and where it goes."""

from ndgpa.analysis.coverage import coverage
from ndgpa.analysis.key_lines import draw_key_lines
from ndgpa.analysis.key_weights import key_weights

__all__ = ["coverage", "draw_key_lines", "key_weights"]
