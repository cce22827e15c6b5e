"""DeepFashion as the pose transfer papers lay it out (PATN).

    ROOT/train/NAME.jpg                        256 rows, 176 columns
    ROOT/fasion-resize-annotation-train.csv    name:keypoints_y:keypoints_x, each a JSON list of 18
    ROOT/fasion-resize-pairs-train.csv         from,to

and so for `test`; "fasion" is how the files are spelt. A missing point is -1. Eyes and ears are in
OpenPose's order, the right ones first, though PATN's code names them the other way round.
Source: Zhu et al. 2019 and its repository.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.common.untrusted import BadInput, inside
from examples.people.frames import IMAGES, Files, ImageFile, image_size
from examples.people.geometry import cut_points, whole_box
from examples.people.keypoints import NAMES, on_picture, tidy
from examples.people.pictures import Unreadable
from examples.people.posture import check_pixels, lies, oddities
from examples.people.problems import (
    Problem,
    counted,
    log_opened,
    parse_lines,
    read_table,
)

SPLITS = ("train", "test")
CROP = (256, 176)  # height and width
SWAPPED = "has x and y swapped, it seems"


@dataclass(frozen=True)
class Annotation:
    """Key points of a picture, in its own pixels, and the line that they stand on."""

    line: int
    points: np.ndarray


@dataclass(frozen=True)
class Survey:
    """What can be used of a split, and what is wrong with the rest.

    Attributes:
        people: By the picture's name.
        pairs: Names of source and target, both among `people`.
        problems: Every fault met.
    """

    people: dict[str, Annotation]
    pairs: list[tuple[str, str]]
    problems: list[Problem]


def open_deepfashion(root: Path, split: str, size: tuple[int, int] = (256, 256)) -> Files:
    """Open the pictures of a split, padded with white columns to the proportions of `size`.

    Pictures and pairs with a fault are left out; the log says how many, `check` says why.

    Raises:
        ValueError: No picture can be used.
    """
    found = survey(root, split)
    if not found.people:
        raise ValueError(f"no picture of {root / split} can be used: {found.problems[0]}")
    contents = f"{counted(len(found.people), 'picture')}, {counted(len(found.pairs), 'pair')}"
    log_opened(root / split, contents, len(found.problems))
    ids = {name: i for i, name in enumerate(found.people)}
    box = whole_box(CROP, size)
    return Files(
        size,
        [ImageFile(root / split / name) for name in ids],
        np.tile(box, (len(ids), 1)),
        cut_points(_points(found.people), box, size),
        np.array([(ids[a], ids[b]) for a, b in found.pairs], np.int64).reshape(-1, 2),
    )


def survey(root: Path, split: str) -> Survey:
    """Read both lists and the first bytes of every picture."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    annotated, problems = read_annotations(root, split)
    named = mentioned(root, split)
    pairs, more = read_pairs(root, split, named)
    people = {}
    for name, annotation in tqdm(annotated.items(), f"{split}: sizes", delay=2, disable=None):
        fault = _picture_fault(root / split, name)
        if fault is None:
            people[name] = annotation
        else:
            what = f"{split}/{name} {fault}"
            problems.append(Problem(annotation_list(root, split), annotation.line, what))
    pictures = sorted((root / split).iterdir()) if (root / split).is_dir() else []
    problems += [
        Problem(annotation_list(root, split), None, f"{split}/{picture.name} has no annotation")
        for picture in pictures
        if picture.suffix.lower() in IMAGES and picture.name not in named
    ]
    pairs = [pair for pair in pairs if pair[0] in people and pair[1] in people]
    return Survey(people, pairs, problems + more)


def annotation_list(root: Path, split: str) -> Path:
    return root / f"fasion-resize-annotation-{split}.csv"


def pair_list(root: Path, split: str) -> Path:
    return root / f"fasion-resize-pairs-{split}.csv"


def read_annotations(root: Path, split: str) -> tuple[dict[str, Annotation], list[Problem]]:
    """Read the points by name; a point outside its picture counts as missing and is reported."""
    path = annotation_list(root, split)
    try:
        header, lines = read_table(path, ":", ("name", "keypoints_y", "keypoints_x"))
    except ValueError as error:
        return {}, [Problem(path, 1, str(error))]
    records, problems = parse_lines(path, lines, lambda line: _annotation(line, header))
    people: dict[str, Annotation] = {}
    for line, (name, points) in records.items():
        fault = "is named a second time" if name in people else _points_fault(points)
        if fault:
            problems.append(Problem(path, line, f"{name} {fault}"))
        if name not in people and fault != SWAPPED:
            there = on_picture(points, CROP)[:, None]
            people[name] = Annotation(line, np.where(there, points, np.float32([-1, -1, 0])))
    problems += [Problem(path, None, what) for what in oddities(_points(people))]
    return people, problems


def mentioned(root: Path, split: str) -> set[str]:
    """Return every name in the list of annotations, even from lines with a fault."""
    path = annotation_list(root, split)
    lines = path.read_text(errors="replace").splitlines()[1:] if path.is_file() else []
    return {with_suffix(re.split("[:,;\t]", line)[0].strip()) for line in lines}


def _points(people: dict[str, Annotation]) -> np.ndarray:
    return np.array([each.points for each in people.values()], np.float32).reshape(-1, 18, 3)


def _annotation(line: str, header: list[str]) -> tuple[str, np.ndarray]:
    fields = line.split(":")
    if len(fields) != 3:
        raise ValueError(_wrong_count(fields, header, ":"))
    column = dict(zip(header, fields))
    x, y = (_coordinates(column[name], name) for name in ("keypoints_x", "keypoints_y"))
    points = tidy(np.stack([x, y], axis=1))
    check_pixels(points[None])
    return with_suffix(column["name"].strip()), points


def _coordinates(text: str, column: str) -> np.ndarray:
    try:
        numbers = np.array(json.loads(text), np.float64)
    except (OverflowError, RecursionError, TypeError, ValueError):
        raise ValueError(
            f"{column} is {text.strip()[:40]!r}; expected a JSON list of 18 numbers"
        ) from None
    if numbers.shape != (len(NAMES),):
        raise ValueError(f"{column} has {numbers.size} entries; expected {len(NAMES)}")
    return numbers


def _wrong_count(fields: list[str], header: list[str], separator: str) -> str:
    wanted = f"{len(header)} separated by {separator!r}, {separator.join(header)}"
    return f"has {counted(len(fields), 'column')}; expected {wanted}"


def with_suffix(name: str) -> str:
    """Return a picture's file name; some lists leave out the suffix."""
    return name if name.endswith(".jpg") else f"{name}.jpg"


def _points_fault(points: np.ndarray) -> str | None:
    off = (points[:, 2] > 0) & ~on_picture(points, CROP)
    if not off.any():
        return None
    swapped = points[:, [1, 0, 2]]
    if lies(points[None]).any() and on_picture(swapped, CROP)[points[:, 2] > 0].all():
        return SWAPPED
    i = off.argmax()
    x, y = points[i, :2]
    return f"has {NAMES[i]} at x {x:g}, y {y:g}, off the picture of {CROP[1]}x{CROP[0]}"


def _picture_fault(folder: Path, name: str) -> str | None:
    try:
        path = inside(folder, name)
        if not path.is_file():
            return "is missing"
        h, w = image_size(path)
    except BadInput:
        return "leads out of its folder"
    except Unreadable as error:
        return error.why
    if (h, w) == CROP:
        return None
    hint = "; `prepare` cuts such pictures" if (h, w) == (256, 256) else ""
    return f"is {w}x{h}; expected {CROP[1]}x{CROP[0]}{hint}"


def read_pairs(
    root: Path, split: str, known: set[str]
) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Read names of source and target; an unknown name is reported, unless all are unknown."""
    path = pair_list(root, split)
    try:
        header, lines = read_table(path, ",", ("from", "to"))
    except ValueError as error:
        return [], [Problem(path, 1, str(error))]
    records, problems = parse_lines(path, lines, lambda line: _pair(line, header, known))
    return list(records.values()), problems


def _pair(line: str, header: list[str], known: set[str]) -> tuple[str, str]:
    fields = line.split(",")
    if len(fields) != 2:
        raise ValueError(_wrong_count(fields, header, ","))
    column = {key: with_suffix(name.strip()) for key, name in zip(header, fields)}
    for name in column.values():
        if known and name not in known:
            raise ValueError(f"{name} has no annotation")
    if column["from"] == column["to"]:
        raise ValueError(f"{column['from']} is paired with itself")
    return column["from"], column["to"]
