"""What key points leave open: true surfaces find true places, and what is told is counted."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from examples.common import checkpoints
from examples.images.pose_morphing.config import preset
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.studies import ambiguity
from examples.images.pose_morphing.studies.ambiguity import Asked, Options
from examples.images.pose_morphing.surface import Surface
from examples.people.figures.cache import Figures


@pytest.fixture(scope="module")
def with_surface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of no steps."""
    folder = tmp_path_factory.mktemp("with_surface")
    torch.manual_seed(0)
    generator = Generator(replace(preset("tiny64"), body=16))
    facts = {"setting": "mixed", "model": json.loads(json.dumps(asdict(generator.config)))}
    checkpoints.save(folder, 0, checkpoints.tensors_of({"average": generator}), facts)
    return folder


def test_true_surfaces_find_true_places(figures: Path, with_surface: Path, tmp_path: Path) -> None:
    ambiguity.main(Options(figures, with_surface, tmp_path, pairs=3, pixels=40))
    rows = json.loads((tmp_path / "ambiguity.json").read_text())["rows"]
    assert rows["true parts and points"] == {"median px": 0, "within 3 px": 1, "within 6 px": 1}
    for name in ("true parts, points as told", "the generator's strongest key"):
        assert 0 < rows[name]["median px"] < 64
    assert "| true parts and points | 0.000 |" in (tmp_path / "ambiguity.md").read_text()


def test_points_that_are_told_are_those_of_the_part(figures: Path) -> None:
    torch.manual_seed(0)
    held, surface = Figures(figures, "test"), Surface()
    part, points = ambiguity.told(held, 0, surface)
    given = torch.full_like(part, 4)
    assert (part != 4).any()
    same, as_if = ambiguity.told(held, 0, surface, given)
    assert torch.equal(same, given)
    assert torch.equal(as_if[part == 4], points[part == 4])
    assert not torch.equal(as_if[part != 4], points[part != 4])


def test_a_pixel_is_looked_up_within_its_part() -> None:
    part, points = (
        torch.tensor([1, 2, 2, 1]),
        torch.tensor([[0.0], [0.1], [0.5], [0.4]]).expand(4, 3),
    )
    asked = Asked(0, 1, torch.tensor([0, 3]), torch.zeros(2, 2))
    wanted = torch.tensor([2, 0, 0, 1]), torch.tensor([[0.4], [0.0], [0.0], [0.05]]).expand(4, 3)
    (found,) = ambiguity.looked_up(
        [asked], lambda picture: (part, points) if not picture else wanted
    )
    assert found.tolist() == [2, 0]
    off = ambiguity.distances(replace(asked, places=torch.tensor([[1, 0], [3, 4]])), found, 2)
    assert off.tolist() == [0, 5]


@pytest.mark.bad_input
def test_a_network_without_a_surface_was_told_nothing(figures: Path, run: Path) -> None:
    with pytest.raises(ValueError, match="was not told of surfaces"):
        ambiguity.main(Options(figures, run, Path("unused")))
