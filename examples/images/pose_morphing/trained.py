"""Generators from checkpoints, ready to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.model import Generator, set_kappa
from examples.training import checkpoints
from ndgpa import GPA


@dataclass(frozen=True)
class Trained:
    """A generator, and what its checkpoint says of the training."""

    generator: Generator
    step: int
    facts: dict[str, Any]


def load_trained(path: Path, kappa: int | None = None) -> Trained:
    """The averaged weights of a training run.

    Args:
        path: The folder of the run, whose newest checkpoint is used, or one checkpoint's JSON.
        kappa: How many key blocks GPA reads, instead of as many as in training.

    Raises:
        ValueError: There is no checkpoint, it is damaged, or it is of something else.
    """
    found = checkpoints.latest(path) if path.is_dir() else checkpoints.load(path)
    if found is None:
        raise ValueError(f"{path} holds no checkpoint")
    try:
        generator = Generator(config_of(found.facts["model"]))
        checkpoints.restore({"average": generator}, found.tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint in {path} is not of pose morphing") from error
    if kappa is not None:
        read(generator, kappa)
    generator.eval().requires_grad_(False)
    return Trained(generator, found.step, found.facts)


def config_of(said: dict[str, Any]) -> ModelConfig:
    """The options as JSON has them."""
    tuples = {name: tuple(x) for name, x in said.items() if isinstance(x, list)}
    return ModelConfig(**said | tuples)


def read(generator: Generator, kappa: int) -> None:
    """Make every level with GPA read so many key blocks.

    Raises:
        ValueError: The generator has no GPA.
    """
    if not any(isinstance(level.operator, GPA) for level in generator.attentions):
        raise ValueError(f"{generator.config.attention} has no kappa to change")
    set_kappa(generator, kappa)
