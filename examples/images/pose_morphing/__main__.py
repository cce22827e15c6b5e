"""`python -m examples.images.pose_morphing` is the demo."""

import tyro

from examples.images.pose_morphing.demo import Options, main

main(tyro.cli(Options))
