"""`python -m examples.images.copy_photo`; see demo.py."""

import tyro

from examples.images.copy_photo.demo import Options, main

main(tyro.cli(Options))
