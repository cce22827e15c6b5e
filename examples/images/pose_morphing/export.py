"""Make a small checkpoint for use, of a training run: the averaged weights in half precision.

python -m examples.images.pose_morphing.export --run FOLDER --out FOLDER
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.training import checkpoints


@dataclass(frozen=True)
class Options:
    """What is exported."""

    run: Path  # folder of a training run
    out: Path  # folder of the small checkpoint


def export(options: Options) -> int:
    """Write it, and return its size in bytes.

    Raises:
        ValueError: The run has no whole checkpoint.
    """
    found = checkpoints.latest(options.run)
    if found is None:
        raise ValueError(f"{options.run} holds no checkpoint")
    kept = {name: x.half() for name, x in found.tensors.items() if name.startswith("average/")}
    checkpoints.save(options.out, found.step, kept, found.facts, keep=1)
    return checkpoints.records(options.out)[0].with_suffix(".safetensors").stat().st_size


if __name__ == "__main__":
    try:
        size = export(tyro.cli(Options))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{size / 1e6:.1f} MB")
