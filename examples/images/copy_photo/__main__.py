"""`python -m examples.images.copy_photo`; see demo.py."""

import tyro

from examples.common.commands import command
from examples.images.copy_photo.demo import Options, main

command(lambda: main(tyro.cli(Options)))
