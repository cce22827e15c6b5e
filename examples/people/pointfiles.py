"""Key points of many pictures in one file: .json, .csv or .npz, or a folder of OpenPose's files.

* `.json`: a list of frames, or an object whose `keypoints` is that list and whose `box`, if given,
  is the part of the pictures to use: left, top, right, bottom. For single pictures `keypoints` is
  an object from the file's name to its points. null stands where nobody was found. Or what COCO or
  OpenPose write, see detectors.py.
* `.csv`: one row a frame, x,y or x,y,confidence of each point in turn, under a header of any names.
  For single pictures the first column is the file's name.
* `.npz`: arrays `keypoints` (frames, points, 2 or 3), and if wanted `box` and, for single pictures,
  `names`.
* a folder with OpenPose's `NAME_keypoints.json` of each picture or frame.

Points are COCO's 17 or OpenPose's 18, in pixels; missing ones are negative.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from examples.common.untrusted import check_file, read_arrays, read_json
from examples.people.detectors import coco_people, is_coco, is_openpose, openpose_person
from examples.people.frames import IMAGES
from examples.people.geometry import Box
from examples.people.keypoints import COCO_NAMES, NOBODY, from_coco, tidy
from examples.people.posture import check_pixels
from examples.people.problems import Problem, counted, parse_lines

SUFFIXES = (".json", ".csv", ".npz")
OPENPOSE = "_keypoints.json"  # how the names of OpenPose's files end
CSV_BYTES = 2**28
LARGEST_BOX = 65_536  # pixels from the picture's corner
KINDS = {False: "a list of frames", True: "an object from names to points"}
_WIDTHS = {points * numbers: (points, numbers) for points in (17, 18) for numbers in (2, 3)}


@dataclass(frozen=True)
class PointFile:
    """What a file says of one clip, or of a folder of pictures, whose names it then has.

    Attributes:
        lines: Where in the file each frame stands, if it has lines.
        left_out: Names of pictures whose lines have a fault.
    """

    points: Float[np.ndarray, "frames 18 3"]
    names: list[str] | None = None
    box: Box | None = None
    lines: list[int] | None = None
    left_out: tuple[str, ...] = ()

    def line(self, frame: int) -> int | None:
        """Return the line of a frame."""
        return None if self.lines is None else self.lines[frame]


def has_points(folder: Path, stem: str = "keypoints") -> bool:
    """Tell whether a folder has key points."""
    return bool(_point_files(folder, stem))


def find_points(folder: Path, stem: str = "keypoints") -> Path:
    """Find the one file, or folder of OpenPose's files, with the key points of a folder.

    Raises:
        ValueError: There is none, or more than one.
    """
    found = _point_files(folder, stem)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"expected one of {stem}.json, {stem}.csv and {stem}.npz; found {names}")
    return found[0]


def _point_files(folder: Path, stem: str) -> list[Path]:
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    found = [path for path in found if path.is_file()]
    return found + ([folder / stem] if any((folder / stem).glob(f"*{OPENPOSE}")) else [])


def read_points(path: Path, named: bool, least: float) -> tuple[PointFile | None, list[Problem]]:
    """Read everything in the file that makes sense; other frames count as empty.

    Args:
        named: Whether it is one of single pictures, with names.
        least: Confidence that a point must exceed.

    Returns:
        The key points, or None if nothing makes sense, and what is wrong.
    """
    read = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz, "": _read_folder}
    try:
        file, problems = read[path.suffix](path, named, least)
    except (OSError, OverflowError, TypeError, ValueError) as error:
        text = str(error).replace(f"{path} cannot be read as", "it is not")
        text = text.removeprefix(f"{path}, ").replace(f"{path} ", "it ", 1)
        return None, [Problem(path, None, f"cannot be read as key points: {text}")]
    if file.names is not None and len(file.names) != len(file.points):
        counts = f"{len(file.names)} names have {len(file.points)} sets of key points"
        return None, [*problems, Problem(path, None, counts)]
    return (file if len(file.points) else None), problems


def in_order(raw: np.ndarray, least: float) -> Float[np.ndarray, "frames 18 3"]:
    """Read points of COCO or OpenPose, whichever the shape says."""
    if raw.ndim != 3 or raw.shape[1] not in (17, 18) or raw.shape[2] not in (2, 3):
        raise ValueError(f"the shape is {raw.shape}; expected (frames, 17 or 18, 2 or 3)")
    points = from_coco(raw, least) if raw.shape[1] == len(COCO_NAMES) else tidy(raw, least)
    check_pixels(points)
    return points


def _read_npz(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    wanted = ["keypoints"] + ["names"] * named
    if zipfile.is_zipfile(path) and "box.npy" in zipfile.ZipFile(path).namelist():
        wanted.append("box")
    arrays = read_arrays(path, wanted)
    if arrays["keypoints"].dtype.kind not in "iuf":
        raise ValueError(f"keypoints are {arrays['keypoints'].dtype}; expected numbers")
    names = [str(name) for name in arrays["names"].reshape(-1)] if named else None
    box = _box(arrays["box"].tolist()) if "box" in arrays else None
    return PointFile(in_order(arrays["keypoints"].astype(np.float64), least), names, box), []


def _read_json(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    said = read_json(path, (dict, list))
    if is_openpose(said):
        if named:
            raise ValueError(
                f"it is OpenPose's file of one picture; put those of all pictures, NAME{OPENPOSE}, "
                "into a folder keypoints"
            )
        return PointFile(_checked(openpose_person(said, least))[None]), []
    if is_coco(said):
        people = {name: _checked(each) for name, each in coco_people(said, least).items()}
        points = np.array(list(people.values()), np.float32).reshape(-1, *NOBODY.shape)
        return PointFile(points, list(people) if named else None), []
    said = said if isinstance(said, dict) and "keypoints" in said else {"keypoints": said}
    frames = said["keypoints"]
    if not isinstance(frames, dict if named else list):
        kind = KINDS[isinstance(frames, dict)] if isinstance(frames, dict | list) else repr(frames)
        raise ValueError(f"keypoints is {kind}; expected {KINDS[named]}")
    keys = list(frames) if named else range(len(frames))
    points, problems = _each(path, [(str(key), frames[key]) for key in keys], named, least)
    box = None if said.get("box") is None else _box(said["box"])
    return PointFile(points, list(frames) if named else None, box), problems


def _read_folder(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    """Read OpenPose's files, in the order of their names, which are those of the pictures."""
    points, names, problems = [], [], []
    for file in sorted(path.glob(f"*{OPENPOSE}")):
        try:
            points.append(_checked(openpose_person(read_json(file), least)))
        except ValueError as error:
            points.append(NOBODY)
            problems.append(Problem(file, None, str(error).removeprefix(f"{file} ")))
        name = file.name.removesuffix(OPENPOSE)
        there = [name + suffix for suffix in IMAGES if (path.parent / (name + suffix)).is_file()]
        names.append(next(iter(there), name))
    return PointFile(np.array(points), names if named else None), problems


def _each(
    path: Path, frames: list[tuple[str, Any]], named: bool, least: float
) -> tuple[Float[np.ndarray, "frames 18 3"], list[Problem]]:
    points, problems = [], []
    for key, raw in frames:
        try:
            points.append(_frame(raw, least))
        except (OverflowError, TypeError, ValueError) as error:
            points.append(NOBODY)
            problems.append(Problem(path, None, f"{'' if named else 'frame '}{key}: {error}"))
    return np.array(points, np.float32).reshape(-1, *NOBODY.shape), problems


def _frame(raw: Any, least: float) -> np.ndarray:
    if raw is None:
        return NOBODY
    numbers = np.array(raw, np.float64)
    if numbers.ndim == 1 and len(numbers) in _WIDTHS:
        numbers = numbers.reshape(_WIDTHS[len(numbers)])
    return in_order(numbers[None], least)[0]


def _checked(points: np.ndarray) -> np.ndarray:
    check_pixels(points[None])
    return points


def _box(numbers: list[float]) -> Box:
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise ValueError(f"the box is {numbers}; expected left, top, right, bottom")
    if any(abs(x) > LARGEST_BOX for x in numbers):
        raise ValueError(f"the box is {numbers}; at most {LARGEST_BOX} pixels are read")
    left, top, right, bottom = map(round, numbers)
    return left, top, right, bottom


def _read_csv(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    check_file(path, CSV_BYTES)
    lines = list(enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1))
    lines = [(number, line) for number, line in lines[1:] if line.strip()]
    if not lines:
        raise ValueError("there is no row of them")
    records, problems = parse_lines(path, lines, lambda line: _row(line, named, least))
    kept = [number for number, _ in lines if number in records or (records and not named)]
    rows = [records.get(number, ("", NOBODY)) for number in kept]
    points = np.array([points for _, points in rows]).reshape(-1, *NOBODY.shape)
    names = [name for name, _ in rows] if named else None
    faulty = (line for number, line in lines if named and number not in records)
    left_out = tuple(line.split(",")[0].strip() for line in faulty)
    return PointFile(points, names, lines=kept, left_out=left_out), problems


def _row(line: str, named: bool, least: float) -> tuple[str, np.ndarray]:
    name, *rest = line.split(",") if named else ["", *line.split(",")]
    if len(rest) not in _WIDTHS:
        wanted = ", ".join(map(str, sorted(_WIDTHS)))
        found = counted(len(rest), "number")
        raise ValueError(f"has {found} separated by ','; expected one of {wanted}")
    numbers = np.array([float(number) for number in rest])
    return name.strip(), in_order(numbers.reshape(1, *_WIDTHS[len(rest)]), least)[0]
