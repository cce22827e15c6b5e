"""People to learn from: figures that are drawn here, DeepFashion, clips, single pictures."""

from examples.people.sources import open_pictures

__all__ = ["open_pictures"]
