"""Loading what was trained, and making a small file of it that can be shipped.

    python -m examples.images.gan.trained --run runs/ylg --out examples/images/gan/weights/ylg

Both folders hold checkpoints, and `load` takes either; the small one has the averaged generator and
the discriminator only, in 16 bits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import nn

from examples.common import checkpoints
from examples.common.commands import command
from examples.common.untrusted import BadInput, fields
from examples.images.gan.systems import SYSTEMS, config_of

SHIPPED = Path(__file__).parent / "weights"
FACTS = {"system": str, "preset": str, "classes": int}
PARTS = ("average", "discriminator")


@dataclass(frozen=True)
class Trained:
    """Networks that do not learn any more."""

    system: str
    model: Any
    generator: nn.Module  # of averaged weights
    discriminator: nn.Module
    steps: int


def load(folder: Path) -> Trained:
    """Load the newest checkpoint of a run, or what was shipped.

    Raises:
        BadInput: The folder holds none, or one of another program or version.
    """
    found = checkpoints.latest(folder) if folder.is_dir() else None
    if found is None:
        raise BadInput(f"{folder} holds no trained generator")
    facts = fields(found.facts, FACTS, str(folder))
    system, attention = facts["system"], found.facts.get("attention")
    model = config_of(system, facts["preset"], attention, facts["classes"])
    average, discriminator = SYSTEMS[system].generator(model), SYSTEMS[system].discriminator(model)
    parts = dict(zip(PARTS, (average, discriminator)))
    kept = {name: x.float() if x.is_floating_point() else x for name, x in found.tensors.items()}
    checkpoints.restore({**parts}, kept)
    for network in parts.values():
        network.eval().requires_grad_(False)
    return Trained(system, model, average, discriminator, found.step)


@dataclass(frozen=True)
class Options:
    """Make a small file of a run."""

    run: Path
    out: Path


def main(options: Options) -> None:
    size = checkpoints.export((options.run,), options.out, PARTS)
    print(f"{load(options.out).steps} steps, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
