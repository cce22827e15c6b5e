"""Restoring a photograph by copying from a reference."""
