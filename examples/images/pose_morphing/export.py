"""Make a small checkpoint for use, of a training run: the averaged weights in half precision.

    python -m examples.images.pose_morphing.export --run FOLDER --out FOLDER

Of several runs that began with the same weights, `--run A B`, it writes the mean.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.common import checkpoints
from examples.common.commands import command


@dataclass(frozen=True)
class Options:
    """What is exported."""

    run: tuple[Path, ...]  # folders of training runs of one network; of several, the mean
    out: Path  # folder of the small checkpoint


def export(options: Options) -> int:
    """Write it, and return its size in bytes."""
    return checkpoints.export(options.run, options.out, ("average",))


def main(options: Options) -> None:
    print(f"{export(options) / 1e6:.1f} MB")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
