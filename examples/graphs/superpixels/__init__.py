"""Segment a collage of photographs from one marked region of each."""
