"""The commands that render one picture and show where it was copied from."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from examples.images.pose_morphing import morph
from examples.images.pose_morphing.studies import lines
from tests.examples.pose_morphing.conftest import SIZE


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of one's own with COCO's key points beside it."""
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "me.png")
    points = [[50.0 + 3 * (i % 4), 10.0 + 4 * i, 0.9] for i in range(17)]
    (tmp_path / "me.json").write_text(json.dumps([points]))
    return tmp_path / "me.png"


def test_a_held_out_person_is_rendered_in_the_pose_of_another(
    figures: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "morph.png"
    morph.main(morph.Options("0", "3", run, figures, out=out))
    with PIL.Image.open(out) as picture:
        assert picture.size == SIZE[::-1]
    morph.main(morph.Options("0", "3", run, figures, out=out, beside=True))
    with PIL.Image.open(out) as picture:
        assert picture.width == 3 * (3 * SIZE[1] + 6) - 6


def test_a_picture_of_ones_own_is_cut_around_the_person(run: Path, photo: Path) -> None:
    found = morph.answer(morph.Question(str(photo), str(photo.with_suffix(".json")), run))
    assert found.source.image.shape == (*SIZE, 3)
    assert (found.points[:, 2] == 1).all()  # none was cut off
    np.testing.assert_allclose(found.points, found.source.points)
    assert found.morph.image.shape == (1, 3, *SIZE)


def test_kappa_changes_the_picture(figures: Path, run: Path) -> None:
    two, all_ = (morph.answer(morph.Question("0", "3", run, figures, kappa=k)) for k in (1, 128))
    assert not torch.equal(two.morph.image, all_.morph.image)


@pytest.mark.parametrize(
    ("source", "pose", "message"),
    [
        ("99", "0", "there is no picture 99; there are 6, from 0"),
        ("missing.png", "0", r"missing\.png is not a file"),
        ("0", "missing.json", r"missing\.json: cannot be read as key points"),
    ],
)
def test_bad_arguments_are_one_sentence(
    figures: Path, run: Path, source: str, pose: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        morph.answer(morph.Question(source, pose, run, figures))


def test_a_picture_without_key_points_says_where_they_belong(run: Path, photo: Path) -> None:
    photo.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"needs the key points of the person in me\.json beside"):
        morph.answer(morph.Question(str(photo), "0", run))
    with pytest.raises(ValueError, match=r"0 is the number of a picture, but no --data was given"):
        morph.answer(morph.Question("0", "0", run))


def test_lines_are_drawn_and_listed(
    figures: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.png"
    lines.main(lines.Options("0", "3", run, figures, pixels=("40,12", "20,16"), out=out))
    with PIL.Image.open(out) as picture:
        assert min(picture.size) > 300
    text = capsys.readouterr().out
    assert "  40,12   from" in text
    assert "shows the keys of 2 pixels" in text


def test_weights_of_lines_sum_to_one_over_sites_that_exist(figures: Path, run: Path) -> None:
    found = morph.answer(morph.Question("0", "3", run, figures))
    drawn = lines.lines_of(found, lines.followed(found.points))
    assert drawn.size == SIZE
    assert len(drawn.queries) >= 3
    torch.testing.assert_close(drawn.weights.sum(dim=1), torch.ones(len(drawn.queries)))
    assert ((drawn.keys >= 0) & (drawn.keys < SIZE[0] * SIZE[1])).all()
    assert drawn.keys.shape[1] == 4 * 16  # kappa blocks of 4x4 pixels


def test_one_key_counts_as_one_and_equal_ones_as_many() -> None:
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(lines.read_by(weights), torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("text", ["40", "64,1", "1,-1", "a,b"])
def test_a_pixel_outside_the_picture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--pixels has .*; expected ROW,COLUMN within 64x32"):
        lines.read_pixels((text,), SIZE)
