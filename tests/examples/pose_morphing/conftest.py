"""A few small figures and a generator of random weights, for the commands that need both."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.common import checkpoints
from examples.images.pose_morphing.config import PRESETS
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.studies import step_time
from examples.people.figures import cache

SIZE = (64, 32)


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of which only the last identity, the test's, is rendered."""
    options = cache.Options(SIZE, identities=30, poses=6)
    return filled(tmp_path_factory.mktemp("figures"), options, [29])


def filled(folder: Path, options: cache.Options, identities: Iterable[int]) -> Path:
    """Render some identities alone into a folder that is complete otherwise."""
    for name, (shape, dtype) in options.shapes.items():
        np.save(folder / f"{name}.npy", np.zeros(shape, dtype))
    cache.fill(folder, options, identities)
    (folder / "figures.json").write_text(json.dumps(options.written()))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of no steps."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    generator = Generator(PRESETS["tiny64"])
    tensors = checkpoints.tensors_of({"average": generator})
    facts = {"setting": "mixed", "model": json.loads(json.dumps(asdict(generator.config)))}
    checkpoints.save(folder, 5, tensors, facts)
    return folder


@pytest.fixture
def _one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a training step once: nobody looks at how long it takes."""
    monkeypatch.setattr(step_time, "TURNS", 1)
