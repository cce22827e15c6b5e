"""`python -m examples.images.pose_morphing` is the demo."""

import tyro

from examples.common.commands import command
from examples.images.pose_morphing.demo import Options, main

command(lambda: main(tyro.cli(Options)))
