"""Moved to `examples.common.loop`."""

from examples.common.loop import *  # noqa: F403
