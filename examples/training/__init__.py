"""Moved to `examples.common`; these names remain until pose morphing imports them from there."""
