"""The training task of learnt selection: it runs, and the hard rule's router gets no gradient."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "images" / "learnt_selection.py"


@pytest.fixture(scope="module")
def task() -> Any:
    spec = importlib.util.spec_from_file_location("learnt_selection", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_runs_from_start_to_end(task: Any, tmp_path: Path) -> None:
    task.main(task.Options(out=tmp_path, steps=2, batch=1, seeds=1))
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["rules"]) == set(task.WAYS)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_only_the_learnt_rules_train_the_router(task: Any) -> None:
    for name, way in task.WAYS.items():
        generator = torch.Generator().manual_seed(0)
        model = task.Colourer()
        batch = task.make(task.crops(["astronaut"], 1, generator), generator)
        out, _ = model(batch, way)
        (out - batch.target).square().mean().backward()
        trained = model.router.weight.grad is not None and bool(model.router.weight.grad.any())
        assert trained == (way.rule != task.HARD), name


def test_the_right_block_holds_what_is_asked_for(task: Any) -> None:
    """The target of a cell is the colour of the block that it came from."""
    generator = torch.Generator().manual_seed(0)
    batch = task.make(task.crops(["coffee"], 2, generator), generator)
    for cell in (0, 17, 63):
        for b in range(2):
            came_from = task.SPACE.blocks[batch.right[b, cell]]
            assert torch.equal(batch.target[b, task.SPACE.blocks[cell]], batch.source[b, came_from])
