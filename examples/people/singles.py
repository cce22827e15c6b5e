"""A folder of single pictures of people, with their key points and a bank of poses to take.

    ROOT/keypoints.json (or .csv, .npz)    the points of each picture by its file's name
    ROOT/NAME.jpg (or .png, ...)
    ROOT/poses.json (or .csv, .npz)        if wanted: poses alone, in any pixels

Every picture, and every pose, is cut by a box around its person. Without a bank the poses are those
of the pictures. See pointfiles.py for the files.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from examples.common.untrusted import BadInput, inside
from examples.people.frames import IMAGES, Files, ImageFile, image_size
from examples.people.geometry import cut_points, moved_inside, person_box
from examples.people.keypoints import NOBODY
from examples.people.pictures import Unreadable
from examples.people.pointfiles import (
    find_points,
    has_points,
    read_points,
)
from examples.people.posture import LEAST_POINTS, far_points, oddities, peopled, without_far
from examples.people.problems import Problem, counted, log_opened


@dataclass(frozen=True)
class Single:
    """A picture that can be used.

    Attributes:
        image_size: Height and width.
        points: Of the person in it.
        line: Of the file of key points, if it has lines.
    """

    path: Path
    image_size: tuple[int, int]
    points: Float[np.ndarray, "18 3"]
    line: int | None


@dataclass(frozen=True)
class Survey:
    """What can be used of a folder, and what is wrong with the rest.

    Attributes:
        bank: Poses to take, in any pixels; none if the folder has no file of them.
        problems: Every fault met.
    """

    singles: list[Single]
    bank: Float[np.ndarray, "M 18 3"]
    problems: list[Problem]


def open_singles(
    root: Path, size: tuple[int, int], margin: float = 0.12, least: float = 0.3
) -> Files:
    """Open the pictures with a person in them, cut to `size`, without pairs.

    Pictures with a fault are left out; the log says how many, `check` says why.

    Args:
        size: Height and width.
        margin: Room around the person, as a part of what the key points span.
        least: Confidence that a key point must exceed.

    Raises:
        ValueError: No picture can be used.
    """
    found = survey(root, least)
    if not found.singles:
        raise ValueError(f"no picture of {root} can be used: {found.problems[0]}")
    log_opened(root, counted(len(found.singles), "picture"), len(found.problems))
    boxes = [
        moved_inside(person_box(each.points, size, margin), each.image_size)
        for each in found.singles
    ]
    points = [cut_points(each.points, box, size) for each, box in zip(found.singles, boxes)]
    bank = [cut_points(each, person_box(each, size, margin), size) for each in found.bank]
    return Files(
        size,
        [ImageFile(each.path) for each in found.singles],
        np.array(boxes),
        np.stack(points),
        np.zeros((0, 2), np.int64),
        np.stack(bank) if bank else None,
    )


def survey(root: Path, least: float) -> Survey:
    """Read the key points, and the first bytes of every picture that they name."""
    try:
        path = find_points(root)
        file, problems = read_points(path, named=True, least=least)
    except ValueError as error:
        return Survey([], NOBODY[None][:0], [Problem(root, None, str(error))])
    if file is None:
        return Survey([], NOBODY[None][:0], problems)
    singles: list[Single] = []
    for i, name in enumerate(tqdm(file.names or [], "sizes", delay=2, disable=None)):
        try:
            singles.append(_single(inside(root, name), file.points[i], file.line(i)))
        except Unreadable as error:
            problems.append(Problem(path, file.line(i), f"{name} {error.why}"))
        except BadInput as error:
            problems.append(Problem(path, file.line(i), str(error)))
    problems += _oddities(path, singles)
    named = {*(file.names or []), *file.left_out}
    problems += [
        Problem(path, None, f"{picture.name} has no entry")
        for picture in sorted(root.iterdir())
        if picture.suffix.lower() in IMAGES and picture.name not in named
    ]
    bank, more = read_bank(root, least)
    return Survey([each for each in map(_near, singles) if each], bank, problems + more)


def _near(single: Single) -> Single | None:
    """Leave out points far outside the picture; return None if too few are left."""
    points = without_far(single.points[None], np.array([single.image_size]))
    return replace(single, points=points[0]) if peopled(points)[0] else None


def _single(path: Path, points: np.ndarray, line: int | None) -> Single:
    if not path.is_file():
        raise Unreadable(path, "is missing")
    if not peopled(points):
        raise Unreadable(path, f"has fewer than {LEAST_POINTS} key points")
    return Single(path, image_size(path), points, line)


def _oddities(path: Path, singles: list[Single]) -> list[Problem]:
    if not singles:
        return []
    points = np.stack([each.points for each in singles])
    far = far_points(points, np.array([each.image_size for each in singles]))
    return [
        *(Problem(path, singles[i].line, f"{singles[i].path.name}: {far[i]}") for i in far),
        *(Problem(path, None, what) for what in oddities(points)),
    ]


def read_bank(root: Path, least: float) -> tuple[Float[np.ndarray, "M 18 3"], list[Problem]]:
    """Read the poses with enough points from the file `poses`; none if there is no such file."""
    if not has_points(root, "poses"):
        return NOBODY[None][:0], []
    try:
        path = find_points(root, "poses")
        file, problems = read_points(path, named=False, least=least)
    except ValueError as error:
        return NOBODY[None][:0], [Problem(root, None, str(error))]
    if file is None:
        return NOBODY[None][:0], problems
    kept = peopled(file.points)
    few = f"has fewer than {LEAST_POINTS} key points"
    problems += [Problem(path, file.line(i), f"pose {i} {few}") for i in np.flatnonzero(~kept)]
    return file.points[kept], problems
