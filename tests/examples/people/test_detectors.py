"""Key points as OpenPose and COCO write them."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.people import open_pictures
from examples.people.check import main
from examples.people.keypoints import COCO_NAMES, NAMES
from examples.people.person import find_person
from examples.people.pointfiles import read_points
from tests.examples.people import made_up
from tests.examples.people.made_up import STANDING

MIDDLE_OF_THE_HIPS = (88, 130)


def openpose(count: int = 25, shift: float = 0.0) -> list[float]:
    """One person as OpenPose writes it, by its documentation: BODY_25 has the middle of the hips
    at 8 and feet from 19 on, COCO's form has neither."""
    points = [STANDING[name] for name in NAMES]
    if count == 25:
        points = [*points[:8], MIDDLE_OF_THE_HIPS, *points[8:], *[(0, 0)] * 6]
    return [v for x, y in points for v in (x + shift, y, 0.9 if (x, y) != (0, 0) else 0.0)]


def coco() -> list[float]:
    return [v for name in COCO_NAMES for v in (*STANDING[name], 2)]


def read(path: Path, content: object, named: bool) -> tuple[np.ndarray, list[str] | None]:
    path.write_text(json.dumps(content))
    file, problems = read_points(path, named, least=0.3)
    assert not problems
    assert file is not None
    return file.points, file.names


@pytest.mark.parametrize("count", [25, 18])
def test_openposes_own_json_is_read(count: int, tmp_path: Path) -> None:
    said = {"version": 1.3, "people": [{"pose_keypoints_2d": openpose(count)}]}
    points, _ = read(tmp_path / "me_keypoints.json", said, named=False)
    np.testing.assert_array_equal(points[0, :, :2], made_up.standing())
    assert (points[0, :, 2] == 1).all()


def test_points_that_openpose_did_not_find_are_missing(tmp_path: Path) -> None:
    numbers = openpose()
    numbers[:3] = [0, 0, 0]
    said = {"people": [{"pose_keypoints_2d": numbers}]}
    points, _ = read(tmp_path / "a.json", said, named=False)
    assert points[0, 0].tolist() == [-1, -1, 0]
    assert points[0, 1:, 2].all()


def test_of_several_people_the_one_with_the_most_points_counts_then_the_largest(
    tmp_path: Path,
) -> None:
    whole, half, small = openpose(shift=5), openpose(), [x / 2 for x in openpose()]
    half[:12] = [0] * 12
    small[2::3] = openpose()[2::3]
    said = {"people": [{"pose_keypoints_2d": each} for each in (half, small, whole)]}
    points, _ = read(tmp_path / "a.json", said, named=False)
    np.testing.assert_array_equal(points[0, :, :2], made_up.standing(5))


def test_cocos_annotations_are_read_by_file_name(tmp_path: Path) -> None:
    said = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "keypoints": coco(), "num_keypoints": 17}],
        "categories": [],
    }
    points, names = read(tmp_path / "keypoints.json", said, named=True)
    assert names == ["a.png", "b.png"]
    assert not points[0, :, 2].any()
    np.testing.assert_allclose(points[1, :, :2], made_up.standing())


def test_cocos_results_are_read_by_file_name(tmp_path: Path) -> None:
    said = [{"image_id": "a.png", "category_id": 1, "keypoints": coco(), "score": 0.8}]
    points, names = read(tmp_path / "keypoints.json", said, named=True)
    assert names == ["a.png"]
    np.testing.assert_allclose(points[0, :, :2], made_up.standing())


def test_results_by_numbers_say_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps([{"image_id": 139, "keypoints": coco()}]))
    _, problems = read_points(path, named=True, least=0.3)
    assert "annotation 0 is of image 139, which has no file_name" in str(problems[0])


def test_a_folder_of_openposes_files_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "keypoints").mkdir()
    for i in range(2):
        made_up.save(tmp_path / f"{i}.png", made_up.picture((256, 176), i))
        said = {"people": [{"pose_keypoints_2d": openpose(shift=i)}]}
        (tmp_path / "keypoints" / f"{i}_keypoints.json").write_text(json.dumps(said))
    assert main("singles", tmp_path) == 0
    assert len(open_pictures(tmp_path, "train", (64, 32))) == 2


def test_a_picture_with_openposes_file_beside_it_is_a_person(tmp_path: Path) -> None:
    made_up.save(tmp_path / "me.png", made_up.picture((256, 176)))
    said = {"people": [{"pose_keypoints_2d": openpose()}]}
    (tmp_path / "me_keypoints.json").write_text(json.dumps(said))
    assert find_person(str(tmp_path / "me.png"), None, (64, 32)).points[:, 2].all()
