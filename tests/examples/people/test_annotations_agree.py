"""Calibrated cameras, triangulation, and the distances between annotations of one scene."""

from pathlib import Path

import numpy as np
import pytest

from examples.people.annotated import check
from examples.people.annotated.cameras import projected, read_qualisys, triangulated
from examples.people.annotated.check import Track, delays_of, distances
from examples.people.keypoints import NAMES

FRAMES = 16
CAMERA = """<calibration><cameras>
<camera serial="front"><transform x="0" y="0" z="2000" r11="1" r12="0" r13="0" r21="0" r22="1"
r23="0" r31="0" r32="0" r33="1"/><intrinsic focalLengthU="64000" focalLengthV="64000"
centerPointU="32000" centerPointV="19200"/></camera></cameras></calibration>"""


def camera_around(angle: float) -> np.ndarray:
    """A camera 4 m from the origin, level with it, that looks at it; z is up."""
    lens = np.array([[1000.0, 0, 500], [0, 1000, 900], [0, 0, 1]])
    right, forward = [-np.sin(angle), np.cos(angle), 0], [-np.cos(angle), -np.sin(angle), 0]
    turn = np.array([right, [0, 0, -1], forward])
    place = -4 * np.array(forward)
    return lens @ turn @ np.hstack([np.eye(3), -place[:, None]])


CAMERAS = np.stack([camera_around(angle) for angle in (0.0, 1.2, 2.5, 4.0)])


def walker(frame: float) -> np.ndarray:
    """The points of a body in space, which moves along a bent line."""
    body = np.random.default_rng(0).uniform(-0.5, 0.5, (len(NAMES), 3))
    return body + np.array([0.02 * frame, 0.3 * np.sin(frame / 5), 0])


def track(camera: np.ndarray, late: int = 0) -> Track:
    frames = np.arange(0.0, FRAMES)
    points = [[projected(camera, each) for each in walker(frame - late)] for frame in frames]
    seen = np.ones((len(frames), len(NAMES), 1))
    return Track(camera, frames, np.concatenate([points, seen], axis=2), scale=0.25)


def test_qualisys_cameras_look_along_minus_z(tmp_path: Path) -> None:
    """From 2 m: a metre is 500 pixels, 1000 being the focal length."""
    (tmp_path / "a.qca.txt").write_text(CAMERA)
    front = read_qualisys(tmp_path / "a.qca.txt")["front"]
    np.testing.assert_allclose(projected(front, np.array([0, 0, 0])), [500, 300])
    np.testing.assert_allclose(projected(front, np.array([0.2, 0.1, 0])), [600, 250])


def test_a_point_is_where_its_pixels_say() -> None:
    point = np.array([0.3, -0.2, 0.7])
    pixels = np.stack([projected(camera, point) for camera in CAMERAS])
    for few in ([0, 1], [0, 1, 2, 3]):
        np.testing.assert_allclose(triangulated(CAMERAS[few], pixels[few]), point, atol=1e-9)


def test_annotations_without_error_agree() -> None:
    apart = list(distances([track(camera) for camera in CAMERAS], [0, 0, 0, 0]))
    assert len(apart) == FRAMES * len(NAMES) * len(CAMERAS)
    assert max(each.frame_px for each in apart) < 1e-6


def test_a_point_that_is_off_in_one_camera_is_off_by_that_much() -> None:
    tracks = [track(camera) for camera in CAMERAS]
    nose = NAMES.index("nose")
    tracks[0].points[7, nose, :2] += [30, 40]
    apart = list(distances(tracks, [0, 0, 0, 0]))
    wrong = [each for each in apart if each.frame_px > 1e-6]
    assert {each.name for each in wrong} == {"nose"}
    assert wrong[0].frame_px == pytest.approx(50)
    assert wrong[0].cut_px == pytest.approx(12.5)


def test_points_that_two_cameras_see_are_not_counted() -> None:
    tracks = [track(camera) for camera in CAMERAS]
    for each in tracks[:2]:
        each.points[:, NAMES.index("neck")] = [-1, -1, 0]
    apart = list(distances(tracks, [0, 0, 0, 0]))
    assert {each.name for each in apart} == set(NAMES) - {"neck"}


def test_a_camera_that_is_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LATEST", 4)
    late = [0, 3, 0, -2]
    tracks = [track(camera, by) for camera, by in zip(CAMERAS, late, strict=True)]
    assert delays_of(tracks) == late


def test_frames_between_are_interpolated() -> None:
    points = np.ones((2, len(NAMES), 3))
    points[1, :, :2] = 5
    points[1, 3] = [-1, -1, 0]
    points[1, 4, 2] = 0.5
    between = Track(CAMERAS[0], np.array([0.0, 4.0]), points, 1.0).at(1.0)
    assert between[0].tolist() == [2, 2, 1]
    assert np.isnan(between[3]).all()
    assert between[4].tolist() == [2, 2, 0]
    assert np.isnan(Track(CAMERAS[0], np.array([0.0, 4.0]), points, 1.0).at(5.0)).all()


def test_the_table_names_what_was_counted() -> None:
    apart = [check.Distance("lsho", True, x, x / 2) for x in range(11)]
    row = check.summary("sho", True, apart)
    assert check.cells(row) == ["sho", "seen", "11", "5.0", "9.0", "2.5", "4.5"]
    assert check.summary("sho", False, apart) == {"name": "sho", "seen": False, "count": 0}
