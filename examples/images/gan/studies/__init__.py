"""Comparisons of the systems, and what was found."""
