"""Moved to `examples.common.checkpoints`."""

from examples.common.checkpoints import *  # noqa: F403
