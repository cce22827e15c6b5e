"""`check` says what is wrong with a folder, and where; each test breaks one thing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from examples.people.check import main
from examples.people.keypoints import NAMES
from tests.examples.people import made_up

ROOT = Path(__file__).parents[3]
ANNOTATIONS = "fasion-resize-annotation-train.csv"
PAIRS = "fasion-resize-pairs-train.csv"


def name(i: int) -> str:
    return f"fashionWOMENDressesid0000000{i}01_1front.jpg"


def lines_of(capsys: pytest.CaptureFixture[str], root: Path) -> list[str]:
    """What was printed, with paths as seen from the folder."""
    return capsys.readouterr().out.replace(f"{root}/", "").replace(f"{root}", "ROOT").splitlines()


@pytest.mark.parametrize(
    ("kind", "make", "summary"),
    [
        ("deepfashion", made_up.deepfashion, "train: 4 pictures and 4 pairs can be used"),
        ("singles", made_up.singles, "3 pictures and 0 poses of a bank can be used"),
        ("clips", lambda root: made_up.clip_of_images(root, "a"), "1 clip with 5 frames"),
        ("clips", lambda root: made_up.clip_of_video(root, "a"), "1 clip with 24 frames"),
    ],
)
def test_a_faultless_folder_has_no_problem(
    kind: str, make: Callable, summary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert main(kind, tmp_path) == 0
    (line,) = lines_of(capsys, tmp_path)
    assert line.startswith(f"ROOT: {summary}")
    assert line.endswith("; 0 problems")


def test_the_program_prints_every_problem_and_a_summary_and_exits_with_1(tmp_path: Path) -> None:
    root = made_up.deepfashion(tmp_path)
    (root / "train" / name(0)).unlink()
    made_up.change_line(root / ANNOTATIONS, 3, f"{name(1)}; no colons")
    made_up.change_line(root / PAIRS, 5, f"{name(2)},stranger.jpg")
    module = "examples.people.check"
    command = [sys.executable, "-m", module, "deepfashion", root]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    *problems, summary = run.stdout.splitlines()
    assert [problem.split(": ")[0] for problem in problems] == [
        f"{root / ANNOTATIONS}:2",
        f"{root / ANNOTATIONS}:3",
        f"{root / PAIRS}:5",
    ]
    assert summary == f"{root}: train: 2 pictures and 1 pair can be used; 3 problems"
    assert "decoding" not in run.stdout


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def swap(root: Path, line: int) -> None:
    points = made_up.standing()[:, ::-1]
    made_up.change_line(root / ANNOTATIONS, line, made_up.annotation(name(line - 2), points))


def move(root: Path, joint: str, x: float) -> None:
    points = made_up.standing()
    points[NAMES.index(joint), 0] = x
    made_up.change_line(root / ANNOTATIONS, 3, made_up.annotation(name(1), points))


def header(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: made_up.change_line(root / file, 1, text)


def row(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: made_up.change_line(root / file, 3, text)


EIGHTEEN = json.dumps(list(range(18)))
DEEPFASHION = {
    "picture without an annotation": (
        lambda root: made_up.save(root / "train" / name(9), made_up.picture((256, 176))),
        f"{ANNOTATIONS}: train/{name(9)} has no annotation",
    ),
    "key points from 0 to 1": (
        row(ANNOTATIONS, f"{name(1)}: {[0.5] * 18}: {[0.25] * 18}"),
        f"{ANNOTATIONS}:3: all key points lie between 0 and 1",
    ),
    "name that leads out": (
        row(ANNOTATIONS, made_up.annotation("../x.jpg", made_up.standing())),
        f"{ANNOTATIONS}:3: train/../x.jpg leads out of its folder",
    ),
    "picture missing": (
        lambda root: (root / "train" / name(1)).unlink(),
        f"{ANNOTATIONS}:3: train/{name(1)} is missing",
    ),
    "picture truncated": (
        lambda root: shorten(root / "train" / name(1)),
        f"{ANNOTATIONS}:3: train/{name(1)} cannot be read as a picture: ",
    ),
    "not a picture": (
        lambda root: (root / "train" / name(1)).write_text("hello"),
        f"{ANNOTATIONS}:3: train/{name(1)} cannot be read as a picture: cannot identify",
    ),
    "wrong shape": (
        lambda root: made_up.save(root / "train" / name(1), made_up.picture((100, 80))),
        f"{ANNOTATIONS}:3: train/{name(1)} is 80x100; expected 176x256",
    ),
    "not yet cut": (
        lambda root: made_up.save(root / "train" / name(1), made_up.picture((256, 256))),
        f"{ANNOTATIONS}:3: train/{name(1)} is 256x256; expected 176x256; `prepare` cuts such",
    ),
    "x and y swapped": (
        lambda root: swap(root, 3),
        f"{ANNOTATIONS}:3: {name(1)} has x and y swapped, it seems",
    ),
    "off the picture": (
        lambda root: move(root, "lwri", 190),
        f"{ANNOTATIONS}:3: {name(1)} has lwri at x 190, y 120, off the picture of 176x256",
    ),
    "header with commas": (
        header(ANNOTATIONS, "name,keypoints_y,keypoints_x"),
        f"{ANNOTATIONS}:1: the first line is 'name,keypoints_y,keypoints_x'; expected name:"
        "keypoints_y:keypoints_x",
    ),
    "row with commas": (
        row(ANNOTATIONS, f"{name(1)}, {EIGHTEEN}, {EIGHTEEN}"),
        f"{ANNOTATIONS}:3: has 1 column; expected 3 separated by ':', name:keypoints_y:keypoints_x",
    ),
    "no list": (
        row(ANNOTATIONS, f"{name(1)}: [1, 2: {EIGHTEEN}"),
        f"{ANNOTATIONS}:3: keypoints_y is '[1, 2'; expected a JSON list of 18 numbers",
    ),
    "seventeen points": (
        row(ANNOTATIONS, f"{name(1)}: {EIGHTEEN}: {list(range(17))}"),
        f"{ANNOTATIONS}:3: keypoints_x has 17 entries; expected 18",
    ),
    "named twice": (
        row(ANNOTATIONS, made_up.annotation(name(0), made_up.standing())),
        f"{ANNOTATIONS}:3: {name(0)} is named a second time",
    ),
    "no list of annotations": (
        lambda root: (root / ANNOTATIONS).unlink(),
        f"{ANNOTATIONS}:1: is missing",
    ),
    "no list of pairs": (lambda root: (root / PAIRS).unlink(), f"{PAIRS}:1: is missing"),
    "pair of a stranger": (
        row(PAIRS, f"stranger.jpg,{name(1)}"),
        f"{PAIRS}:3: stranger.jpg has no annotation",
    ),
    "pair with itself": (
        row(PAIRS, f"{name(1)},{name(1)}"),
        f"{PAIRS}:3: {name(1)} is paired with itself",
    ),
    "pair with a semicolon": (
        row(PAIRS, f"{name(1)};{name(2)}"),
        f"{PAIRS}:3: has 1 column; expected 2 separated by ',', from,to",
    ),
    "header of pairs": (
        header(PAIRS, "source,target"),
        f"{PAIRS}:1: the first line is 'source,target'; expected from,to",
    ),
}


@pytest.mark.parametrize("fault", DEEPFASHION)
def test_a_fault_of_deepfashion_is_named_with_its_file_and_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DEEPFASHION[fault]
    root = made_up.deepfashion(tmp_path)
    damage(root)
    assert main("deepfashion", root) == 1
    lines = lines_of(capsys, root)
    assert any(line.startswith(expected) for line in lines), lines


def test_people_who_all_lie_on_their_side_have_x_and_y_swapped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half as large, so that no coordinate is off the picture."""
    root = made_up.deepfashion(tmp_path, count=9)
    rows = [made_up.annotation(name(i), made_up.standing()[:, ::-1] / 2) for i in range(9)]
    made_up.write(root / ANNOTATIONS, ["name:keypoints_y:keypoints_x", *rows])
    assert main("deepfashion", root) == 1
    lines = lines_of(capsys, root)
    what = "9 of 9 people lie on their side: x and y look swapped"
    assert lines[0] == f"{ANNOTATIONS}: {what}"


def test_eyes_named_the_other_way_round_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made_up.deepfashion(tmp_path, count=8)
    points = made_up.standing()
    points[[14, 15, 16, 17]] = points[[15, 14, 17, 16]]
    rows = [made_up.annotation(name(i), points) for i in range(8)]
    made_up.write(root / ANNOTATIONS, ["name:keypoints_y:keypoints_x", *rows])
    assert main("deepfashion", root) == 1
    assert "8 of 8 people have the right eye on the side of the left" in capsys.readouterr().out


def clip_json(change: Callable[[list], object]) -> Callable[[Path], None]:
    """Change the points of the clip's frames."""

    def damage(clip: Path) -> None:
        path = clip / "keypoints.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def points_as_csv(rows: list[str]) -> Callable[[Path], None]:
    def damage(clip: Path) -> None:
        (clip / "keypoints.json").unlink()
        made_up.write(clip / "keypoints.csv", ["points", *rows])

    return damage


def second_video(clip: Path) -> None:
    made_up.write_video(clip / "b.mp4", [np.zeros((64, 64, 3), np.uint8)])


ROW = ",".join(f"{v:g}" for v in made_up.standing().flatten())
CLIPS = {
    "no key points": (
        lambda clip: (clip / "keypoints.json").unlink(),
        "a: expected one of keypoints.json, keypoints.csv and keypoints.npz; found none",
    ),
    "two files of key points": (
        lambda clip: (clip / "keypoints.csv").write_text("x"),
        "a: expected one of keypoints.json, keypoints.csv and keypoints.npz; found keypoints.json, "
        "keypoints.csv",
    ),
    "frame missing": (
        lambda clip: (clip / "frames" / "003.png").unlink(),
        "a: has 4 frames, but key points of 5",
    ),
    "frame broken": (
        lambda clip: shorten(clip / "frames" / "003.png"),
        "a/frames/003.png: cannot be read as a picture: ",
    ),
    "frame of another size": (
        lambda clip: made_up.save(clip / "frames" / "003.png", made_up.picture((100, 80))),
        "a/frames/003.png: is 80x100; the first frame is 400x300",
    ),
    "frames and a video": (
        second_video,
        "a: expected one video or images in a folder frames; found b.mp4, frames",
    ),
    "sixteen points": (
        clip_json(lambda frames: [*frames[:4], frames[4][:16]]),
        "a/keypoints.json: frame 4: the shape is (1, 16, 2); expected (frames, 17 or 18, 2 or 3)",
    ),
    "not JSON": (
        lambda clip: (clip / "keypoints.json").write_text("[1, 2"),
        "a/keypoints.json: cannot be read as key points: it is not JSON: Expecting ','",
    ),
    "by names": (
        clip_json(lambda frames: {"keypoints": {"a.png": frames[0]}}),
        "a/keypoints.json: cannot be read as key points: keypoints is an object from names to "
        "points; expected a list of frames",
    ),
    "box a million wide": (
        clip_json(lambda frames: {"keypoints": frames, "box": [0, 0, 10**6, 90]}),
        "a/keypoints.json: cannot be read as key points: the box is [0, 0, 1000000, 90]; at most",
    ),
    "key points from 0 to 1": (
        clip_json(lambda frames: [*frames[:4], [[x / 400, y / 300] for x, y in frames[4]]]),
        "a/keypoints.json: frame 4: all key points lie between 0 and 1",
    ),
    "bad box": (
        clip_json(lambda frames: {"keypoints": frames, "box": [10, 10, 5, 90]}),
        "a/keypoints.json: cannot be read as key points: the box is [10, 10, 5, 90]; expected left",
    ),
    "not an archive": (
        lambda clip: (clip / "keypoints.json").rename(clip / "keypoints.npz"),
        "a/keypoints.npz: cannot be read as key points: ",
    ),
    "nobody": (
        clip_json(lambda frames: [None] * 5),
        "a: has nobody with 4 of the key points in any frame",
    ),
    "off the picture": (
        clip_json(lambda frames: [*frames[:4], [[x + 400, y] for x, y in frames[4]]]),
        "a/keypoints.json: frame 4: nose is at x 568, y 30, off the picture of 400x300",
    ),
    "short row": (
        points_as_csv([ROW, ROW, "1,2,3", ROW, ROW]),
        "a/keypoints.csv:4: has 3 numbers separated by ','; expected one of 34, 36, 51, 54",
    ),
    "no number": (
        points_as_csv([ROW, ROW, ROW.replace("88", "?"), ROW, ROW]),
        "a/keypoints.csv:4: could not convert string to float: '?'",
    ),
    "semicolons": (
        points_as_csv([ROW.replace(",", ";")] * 5),
        "a/keypoints.csv:2: has 1 number separated by ','; expected one of 34, 36, 51, 54",
    ),
}


@pytest.mark.parametrize("fault", CLIPS)
def test_a_fault_of_a_clip_is_named_with_its_file(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = CLIPS[fault]
    damage(made_up.clip_of_images(tmp_path, "a"))
    assert main("clips", tmp_path) == 1
    lines = lines_of(capsys, tmp_path)
    assert lines[0].startswith(expected), lines
    assert lines[-1].endswith("5 problems" if fault == "semicolons" else "1 problem")


def test_a_broken_video_is_named_and_the_next_clip_is_checked_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorten(made_up.clip_of_video(tmp_path, "a") / "clip.mp4")
    made_up.clip_of_video(tmp_path, "b")
    assert main("clips", tmp_path) == 1
    first, last = lines_of(capsys, tmp_path)
    assert first.startswith("a/clip.mp4: cannot be read as a video: ")
    assert last == "ROOT: 1 clip with 24 frames; 1 problem"


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.rmdir()])
def test_a_folder_without_clips_is_a_problem(
    make: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "clips"
    root.mkdir()
    make(root)
    assert main("clips", root) == 1
    assert lines_of(capsys, root)[0] in ("ROOT: has no folder of a clip", "ROOT: is not a folder")


SINGLES = {
    "picture without an entry": (
        lambda root: made_up.save(root / "7.png", made_up.picture((256, 176))),
        "keypoints.csv: 7.png has no entry",
    ),
    "key points from 0 to 1": (
        lambda root: made_up.change_line(root / "keypoints.csv", 3, "1.png" + 17 * ",0.5,0.25,1"),
        "keypoints.csv:3: all key points lie between 0 and 1, as parts of the picture's size; "
        "expected pixels",
    ),
    "name that leads out": (
        lambda root: (
            (root / "1.png").unlink(),
            made_up.change_line(root / "keypoints.csv", 3, "../1.png" + 17 * ",9,9,1"),
        ),
        "keypoints.csv:3: the file name '../1.png' leads out of ROOT",
    ),
    "picture missing": (
        lambda root: (root / "1.png").unlink(),
        "keypoints.csv:3: 1.png is missing",
    ),
    "picture broken": (
        lambda root: shorten(root / "1.png"),
        "keypoints.csv:3: 1.png cannot be read as a picture: ",
    ),
    "nobody": (
        lambda root: made_up.change_line(root / "keypoints.csv", 3, "1.png" + 17 * ",0,0,0"),
        "keypoints.csv:3: 1.png has fewer than 4 key points",
    ),
    "off the picture": (
        lambda root: made_up.change_line(root / "keypoints.csv", 3, "1.png" + 17 * ",9,999,1"),
        "keypoints.csv:3: 1.png: nose is at x 9, y 999, off the picture of 176x256",
    ),
    "empty pose": (
        lambda root: made_up.write(root / "poses.csv", ["x", ROW, 36 * "-1," + "-1"]),
        "poses.csv:3: has 37 numbers separated by ','",
    ),
    "pose of nobody": (
        lambda root: made_up.write(root / "poses.csv", ["x", ROW, 35 * "-1," + "-1"]),
        "poses.csv:3: pose 1 has fewer than 4 key points",
    ),
    "no key points": (
        lambda root: (root / "keypoints.csv").unlink(),
        "ROOT: expected one of keypoints.json, keypoints.csv and keypoints.npz; found none",
    ),
}


@pytest.mark.parametrize("fault", SINGLES)
def test_a_fault_of_single_pictures_is_named_with_its_file_and_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = SINGLES[fault]
    damage(made_up.singles(tmp_path))
    assert main("singles", tmp_path) == 1
    lines = lines_of(capsys, tmp_path)
    assert lines[0].startswith(expected), lines


def test_a_picture_too_large_to_be_one_is_a_problem_and_not_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.singles(tmp_path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert main("singles", tmp_path) == 1
    assert "3 problems" in lines_of(capsys, tmp_path)[-1]
