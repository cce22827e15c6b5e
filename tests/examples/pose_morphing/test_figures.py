"""The figures of the paper, from what is committed."""

from pathlib import Path

import PIL.Image
import pytest
import torch

import ndgpa
from examples.images.pose_morphing import figures
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.studies import low_rank
from examples.people.keypoints import NAMES, on_picture


def test_the_figure_of_errors_against_memory_needs_no_network(tmp_path: Path) -> None:
    figures.main(figures.Options(("5a",), tmp_path, tmp_path / "people"))
    assert [path.name for path in tmp_path.iterdir()] == ["figure5a.png"]
    with PIL.Image.open(tmp_path / "figure5a.png") as picture:
        assert picture.width > 600


@pytest.mark.bad_input
def test_an_unknown_figure_is_refused_before_any_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figure '4'; expected all or some of 5a, 5b, 6"):
        figures.main(figures.Options(("5a", "4"), tmp_path / "out", tmp_path / "people"))
    assert not (tmp_path / "out").exists()


def test_the_photograph_stands_where_its_key_points_are() -> None:
    image, points = figures.photograph((128, 64))
    assert image.shape == (1, 3, 128, 64)
    there = on_picture(torch.from_numpy(points), (128, 64))
    assert {NAMES[i] for i in there.nonzero()[:, 0]} == set(figures.PHOTO_POINTS)
    nose = image[0, :, *points[0, 1::-1].round().astype(int)]
    assert nose[0] > nose[2] > -0.5  # skin is red before blue


def test_low_rank_errors_vanish_where_nothing_is_left_out() -> None:
    """Of 64 sites: all blocks and 128 landmarks are full attention, 32 landmarks are not."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 64, 4)
    space, operator = ndgpa.Image((8, 8), 2), ndgpa.GPA(16, scale=1.0, affinity="euclidean")
    level = Level((8, 8), torch.zeros(1, 3, 8, 8), query, key, space, operator)
    found = low_rank.errors(level, torch.rand(1, 3, 8, 8))
    assert found["GPA"] < 1e-5
    assert found["NYF128"] < 1e-5
    assert found["NYF32"] > 0.01


@pytest.mark.slow
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    names = [name for name in figures.FIGURES if name not in ("5b", "8")]
    figures.main(figures.Options(tuple(names), tmp_path / "out", tmp_path / "people"))
    assert len(list((tmp_path / "out").iterdir())) == len(names)
