"""Moved to `examples.common.files`."""

from examples.common.files import *  # noqa: F403
