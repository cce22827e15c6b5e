"""Decoding: attention from the newest sites of a growing space, at a cost that does not grow."""

from ndgpa.cache.cache import Cache

__all__ = ["Cache"]
