"""Make a small checkpoint for use, of a training run: the averaged weights in half precision.

python -m examples.images.pose_morphing.export --run FOLDER --out FOLDER
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.common import checkpoints
from examples.common.commands import command
from examples.common.files import check_folder


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
    check_folder(options.out)
    if options.out.resolve() == options.run.resolve():
        raise ValueError(f"{options.out} is the run itself; name another folder")
    found = checkpoints.latest(options.run)
    if found is None:
        raise ValueError(f"{options.run} holds no checkpoint")
    kept = {name: x.half() for name, x in found.tensors.items() if name.startswith("average/")}
    checkpoints.save(options.out, found.step, kept, found.facts, keep=1)
    return checkpoints.records(options.out)[0].with_suffix(".safetensors").stat().st_size


def main(options: Options) -> None:
    print(f"{export(options) / 1e6:.1f} MB")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
