"""Restoring a damaged recording by copying from elsewhere in it."""
