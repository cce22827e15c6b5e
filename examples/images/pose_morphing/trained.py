"""Generators from checkpoints, ready to use."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.common import checkpoints, untrusted
from examples.common.commands import check_count
from examples.common.untrusted import BadInput, number
from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.growth import before_growth
from examples.images.pose_morphing.model import Generator, selecting, set_kappa

KINDS: dict[Any, Any] = {
    tuple[int, int]: list,
    tuple[int, ...]: list,
    int | None: (int, type(None)),
    float: (int, float),
}  # in JSON, of fields that are of another kind there
OLDER = {"stems": 1, "sharper": 1.0, "body": 0, "body_length": 3.5, "body_seen": 0.6}
"""What checkpoints of older versions do not say."""
LARGEST_SIDE, LARGEST_WIDTH, MOST_LEVELS = 4096, 8192, 12


@dataclass(frozen=True)
class Trained:
    """A generator, and what its checkpoint says of the training."""

    generator: Generator
    step: int
    facts: dict[str, Any]


def load_trained(path: Path, kappa: int | None = None) -> Trained:
    """Load the averaged weights of a training run.

    Args:
        path: The folder of the run, whose newest checkpoint is used, or one checkpoint's JSON.
        kappa: How many key blocks GPA reads, instead of as many as in training.

    Raises:
        ValueError: There is no checkpoint, it is damaged, or it is of something else.
    """
    found = checkpoints.latest(path) if path.is_dir() else checkpoints.load(path)
    if found is None:
        raise BadInput(f"{path} holds no checkpoint")
    planned = config_of(found.facts.get("model"), f"the model of the checkpoint in {path}")
    config = grown_so_far(planned, found.tensors)
    generator = Generator(config)
    checkpoints.restore({"average": generator}, found.tensors)
    if kappa is not None:
        read(generator, kappa)
    generator.eval().requires_grad_(False)
    return Trained(generator, found.step, found.facts)


def config_of(said: Any, name: str) -> ModelConfig:
    """Read the options of a model from a file that may hold anything.

    Raises:
        BadInput: One is missing, unknown, of another type or beyond its limit.
    """
    kinds = {field.name: KINDS.get(field.type, field.type) for field in fields(ModelConfig)}
    said = untrusted.fields(OLDER | untrusted.of_kind(said, dict, name), kinds, name)
    if unknown := sorted(said.keys() - kinds):
        raise BadInput(f"{name} has the unknown option {unknown[0]!r}")
    sides = [number(side, f"the size of {name}", 8, LARGEST_SIDE) for side in said["size"]]
    widths = [number(x, f"a width of {name}", 1, LARGEST_WIDTH) for x in said["channels"]]
    if len(sides) != 2 or not 1 <= len(widths) <= MOST_LEVELS:
        raise BadInput(f"{name} has {len(sides)} sides and {len(widths)} levels")
    number(said["query_width"] or 1, f"the query_width of {name}", 1, LARGEST_WIDTH)
    number(said["fusion_kernel"], f"the fusion_kernel of {name}", 1, 15)
    number(said["sharper"], f"the sharper of {name}", 1e-3, 1e3)
    number(said["body_length"], f"the body_length of {name}", 1e-3, 1e3)
    number(said["body_seen"], f"the body_seen of {name}", 0, 1)
    number(said["weight_lr"], f"the weight_lr of {name}", 1e-3, 1e3)
    try:
        return ModelConfig(**said | {"size": tuple(sides), "channels": tuple(widths)})
    except ValueError as error:
        raise BadInput(f"{name} cannot be built: {error}") from error


def grown_so_far(planned: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    """Find the network of a growth that a file holds, before memory is allocated for it.

    Raises:
        BadInput: It holds none of them.
    """
    held = {name: x.shape for name, x in tensors.items() if name.startswith("average/")}
    for times in range(planned.stems):
        config = before_growth(planned, times)
        with torch.device("meta"):
            shapes = {name: x.shape for name, x in Generator(config).state_dict().items()}
        if held == {f"average/{name}": shape for name, shape in shapes.items()}:
            return config
    raise BadInput("the checkpoint does not hold the network that it describes")


def read(generator: Generator, kappa: int) -> None:
    """Make every level with GPA read so many key blocks.

    Raises:
        ValueError: The generator has no GPA.
    """
    check_count("kappa", kappa)
    if not selecting(generator):
        raise ValueError(f"{generator.config.attention} has no kappa to change")
    set_kappa(generator, kappa)
