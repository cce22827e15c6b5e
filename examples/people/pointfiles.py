"""Key points of many pictures in one file: .json, .csv or .npz.

* `.json`: a list of frames, or an object whose `keypoints` is that list and whose `box`, if given,
  is the part of the pictures to use: left, top, right, bottom. For single pictures `keypoints` is
  an object from the file's name to its points. null stands where nobody was found.
* `.csv`: one row a frame, x,y or x,y,confidence of each point in turn, under a header of any names.
  For single pictures the first column is the file's name.
* `.npz`: arrays `keypoints` (frames, points, 2 or 3), and if wanted `box` and, for single pictures,
  `names`.

Points are COCO's 17 or OpenPose's 18, in pixels.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from examples.people.geometry import Box
from examples.people.keypoints import COCO_NAMES, NAMES, from_coco, tidy
from examples.people.problems import Problem, counted, parse_lines

SUFFIXES = (".json", ".csv", ".npz")
NOBODY = np.tile(np.float32([-1, -1, 0]), (len(NAMES), 1))
KINDS = {False: "a list of frames", True: "an object from names to points"}
_WIDTHS = {points * numbers: (points, numbers) for points in (17, 18) for numbers in (2, 3)}


@dataclass(frozen=True)
class PointFile:
    """What a file says of one clip, or of a folder of pictures, whose names it then has.

    Attributes:
        lines: Where in the file each frame stands, if it has lines.
    """

    points: Float[np.ndarray, "frames 18 3"]
    names: list[str] | None = None
    box: Box | None = None
    lines: list[int] | None = None

    def line(self, frame: int) -> int | None:
        """Where a frame stands."""
        return None if self.lines is None else self.lines[frame]


def has_points(folder: Path, stem: str = "keypoints") -> bool:
    """Whether there is a file of key points in a folder."""
    return any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES)


def find_points(folder: Path, stem: str = "keypoints") -> Path:
    """The one file of key points in a folder.

    Raises:
        ValueError: There is none, or more than one.
    """
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"expected one of {stem}.json, {stem}.csv and {stem}.npz; found {names}")
    return found[0]


def read_points(path: Path, named: bool, least: float) -> tuple[PointFile | None, list[Problem]]:
    """Everything in the file that makes sense; frames that do not have nobody in them.

    Args:
        named: Whether it is one of single pictures, with names.
        least: Confidence that a point must exceed.

    Returns:
        The key points, or None if nothing makes sense, and what is wrong.
    """
    read = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz}[path.suffix]
    try:
        file, problems = read(path, named, least)
    except json.JSONDecodeError as error:
        return None, [Problem(path, error.lineno, f"is not JSON: {error.msg}")]
    except KeyError as error:
        return None, [Problem(path, None, f"has no array {error}")]
    except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        return None, [Problem(path, None, f"cannot be read as key points: {error}")]
    if file.names is not None and len(file.names) != len(file.points):
        counts = f"{len(file.names)} names have {len(file.points)} sets of key points"
        return None, [*problems, Problem(path, None, counts)]
    return (file if len(file.points) else None), problems


def in_order(raw: np.ndarray, least: float) -> Float[np.ndarray, "frames 18 3"]:
    """Points of COCO or OpenPose, whichever the shape says."""
    if raw.ndim != 3 or raw.shape[1] not in (17, 18) or raw.shape[2] not in (2, 3):
        raise ValueError(f"the shape is {raw.shape}; expected (frames, 17 or 18, 2 or 3)")
    return from_coco(raw, least) if raw.shape[1] == len(COCO_NAMES) else tidy(raw, least)


def _read_npz(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    with np.load(path) as arrays:
        names = [str(name) for name in arrays["names"]] if named else None
        box = _box(arrays["box"].tolist()) if "box" in arrays else None
        points = in_order(arrays["keypoints"].astype(np.float64), least)
    return PointFile(points, names, box), []


def _read_json(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    said = json.loads(path.read_text())
    said = said if isinstance(said, dict) and "keypoints" in said else {"keypoints": said}
    frames = said["keypoints"]
    if isinstance(frames, dict) is not named:
        raise ValueError(f"keypoints is {KINDS[not named]}; expected {KINDS[named]}")
    keys = list(frames) if named else range(len(frames))
    points, problems = [], []
    for key in keys:
        try:
            points.append(_frame(frames[key], least))
        except (ValueError, TypeError) as error:
            points.append(NOBODY)
            problems.append(Problem(path, None, f"{'' if named else 'frame '}{key}: {error}"))
    box = None if said.get("box") is None else _box(said["box"])
    return PointFile(np.array(points), list(frames) if named else None, box), problems


def _frame(raw: list[list[float]] | None, least: float) -> np.ndarray:
    return NOBODY if raw is None else in_order(np.array(raw, np.float64)[None], least)[0]


def _box(numbers: list[float]) -> Box:
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise ValueError(f"the box is {numbers}; expected left, top, right, bottom")
    left, top, right, bottom = map(round, numbers)
    return left, top, right, bottom


def _read_csv(path: Path, named: bool, least: float) -> tuple[PointFile, list[Problem]]:
    lines = list(enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1))
    lines = [(number, line) for number, line in lines[1:] if line.strip()]
    if not lines:
        raise ValueError("there is no row of them")
    records, problems = parse_lines(path, lines, lambda line: _row(line, named, least))
    kept = [number for number, _ in lines if number in records or (records and not named)]
    rows = [records.get(number, ("", NOBODY)) for number in kept]
    points = np.array([points for _, points in rows]).reshape(-1, *NOBODY.shape)
    return PointFile(points, [name for name, _ in rows] if named else None, lines=kept), problems


def _row(line: str, named: bool, least: float) -> tuple[str, np.ndarray]:
    name, *rest = line.split(",") if named else ["", *line.split(",")]
    if len(rest) not in _WIDTHS:
        wanted = ", ".join(map(str, sorted(_WIDTHS)))
        found = counted(len(rest), "number")
        raise ValueError(f"has {found} separated by ','; expected one of {wanted}")
    numbers = np.array([float(number) for number in rest])
    return name.strip(), in_order(numbers.reshape(1, *_WIDTHS[len(rest)]), least)[0]
