"""Filling the holes and missing frames of a clip by copying from other times and places."""
