"""A folder of clips, each of one person: videos, or folders of frames, with key points.

    ROOT/CLIP/keypoints.json (or .csv, .npz)    of every frame; see pointfiles.py
    ROOT/CLIP/frames/*.png (or .jpg, ...)       in the order of their names
    ROOT/CLIP/ANY.mp4 (or .mov, ...)            in place of frames/

A clip is cut by one box around everything that the person does in it, with a margin, or by the box
that its file of key points gives. Any two frames of a clip are a pair.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from examples.people.frames import IMAGES, Files, Frame, ImageFile
from examples.people.geometry import (
    Box,
    box_around,
    cut_points,
    moved_inside,
    person_box,
)
from examples.people.pictures import Unreadable
from examples.people.pointfiles import find_points, read_points
from examples.people.posture import LEAST_POINTS, far_points, oddities, peopled, without_far
from examples.people.problems import Problem, counted, log_opened
from examples.people.videos import VIDEOS, decoded, video_frames

NOBODY_THERE = f"has nobody with {LEAST_POINTS} of the key points in any frame"


@dataclass(frozen=True)
class Clip:
    """The frames of one clip and the points of the person in each.

    Attributes:
        image_size: Height and width of the frames.
        box: What to use of the frames, if the clip says so.
    """

    path: Path
    frames: list[Frame]
    image_size: tuple[int, int]
    points: Float[np.ndarray, "frames 18 3"]
    box: Box | None


@dataclass(frozen=True)
class Options:
    """How clips become pictures and pairs."""

    margin: float = 0.12
    """Room around the person, as a part of what the key points span."""
    least: float = 0.3
    """Confidence that a key point must exceed."""
    pairs_per_clip: int = 200
    """How many pairs of frames to draw from each clip."""
    seed: int = 0
    """Of that draw."""


def open_clips(root: Path, size: tuple[int, int], options: Options = Options()) -> Files:
    """Open every frame with a person in it, cut to `size`, with random pairs of frames of one clip.

    Clips with a fault are left out; the log says how many, `check` says why.

    Raises:
        ValueError: No clip can be used.
    """
    clips, problems = survey(root, options.least)
    if not clips:
        raise ValueError(f"no clip of {root} can be used: {problems[0]}")
    opened = [_pictures(clip, size, options) for clip in clips]
    starts = np.cumsum([0] + [len(each) for each in opened])
    contents = f"{counted(len(clips), 'clip')}, {counted(starts[-1], 'frame')}"
    log_opened(root, contents, len(problems))
    return Files(
        size,
        [frame for each in opened for frame in each.frames],
        np.concatenate([each.boxes for each in opened]),
        np.concatenate([each.points for each in opened]),
        np.concatenate([each.pairs + start for each, start in zip(opened, starts)]),
    )


def _pictures(clip: Clip, size: tuple[int, int], options: Options) -> Files:
    if clip.box is None:
        box = moved_inside(person_box(clip.points, size, options.margin), clip.image_size)
    else:
        box = box_around(clip.box, size)
    points = cut_points(clip.points, box, size)
    kept = np.flatnonzero(peopled(points))
    seed = [options.seed, zlib.crc32(clip.path.name.encode())]
    return Files(
        size,
        [clip.frames[i] for i in kept],
        np.tile(box, (len(kept), 1)),
        points[kept],
        draw_pairs(len(kept), options.pairs_per_clip, seed),
    )


def draw_pairs(frames: int, count: int, seed: list[int]) -> np.ndarray:
    """Draw ordered pairs of different frames, or all where there are fewer; (P, 2) int64."""
    possible = frames * (frames - 1)
    drawn = np.random.default_rng(seed).choice(possible, min(count, possible), replace=False)
    source, target = np.divmod(drawn, max(frames - 1, 1))
    return np.stack([source, target + (target >= source)], axis=1)


def survey(root: Path, least: float) -> tuple[list[Clip], list[Problem]]:
    """Read the key points of every clip and find its frames; only the first of them is decoded."""
    if not root.is_dir():
        return [], [Problem(root, None, "is not a folder")]
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        return [], [Problem(root, None, "has no folder of a clip")]
    clips, problems = [], []
    for folder in tqdm(folders, "clips", delay=2, disable=None):
        clip, faults = read_clip(folder, least)
        clips += [] if clip is None else [clip]
        problems += faults
    return clips, problems


def read_clip(folder: Path, least: float) -> tuple[Clip | None, list[Problem]]:
    """Read a clip and its minor faults, or return no clip and the reason."""
    try:
        path = find_points(folder)
        file, problems = read_points(path, named=False, least=least)
        if file is None:
            return None, problems
        frames = find_frames(folder)
        check_match(frames, file.points)
        h, w, _ = frames[0].read().shape
    except Unreadable as error:
        return None, [Problem(error.path, None, error.why)]
    except ValueError as error:
        return None, [Problem(folder, None, str(error))]
    sizes = np.tile((h, w), (len(frames), 1))
    far, near = far_points(file.points, sizes), without_far(file.points, sizes)
    problems += [Problem(path, file.line(i), f"frame {i}: {what}") for i, what in far.items()]
    problems += [Problem(path, None, what) for what in oddities(file.points)]
    if not peopled(near).any():
        return None, [*problems, Problem(folder, None, NOBODY_THERE)]
    return Clip(folder, frames, (h, w), near, file.box), problems


def check_match(frames: list[Frame], points: Float[np.ndarray, "frames 18 3"]) -> None:
    """Raise ValueError if the points do not match the frames, or show nobody."""
    if len(frames) != len(points):
        raise ValueError(f"has {len(frames)} frames, but key points of {len(points)}")
    if not peopled(points).any():
        raise ValueError(NOBODY_THERE)


def find_frames(folder: Path) -> list[Frame]:
    """Find the frames of the one video in a folder, or the images in its folder `frames`.

    Raises:
        ValueError: There are none, or several videos.
    """
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEOS)
    inner = folder / "frames"
    images = sorted(inner.iterdir()) if inner.is_dir() else []
    images = [path for path in images if path.suffix.lower() in IMAGES]
    if len(videos) + bool(images) != 1:
        names = ", ".join([path.name for path in videos] + ["frames"] * bool(images)) or "neither"
        raise ValueError(f"expected one video or images in a folder frames; found {names}")
    return list(map(ImageFile, images)) or list(video_frames(videos[0]))


def frame_faults(clip: Clip) -> list[Problem]:
    """Decode every frame and list what is wrong."""
    faults = []
    for path in dict.fromkeys(frame.path for frame in clip.frames):
        fault = (
            _video_fault(path, clip) if path.suffix.lower() in VIDEOS else _image_fault(path, clip)
        )
        faults += [Problem(path, None, fault)] if fault else []
    return faults


def _image_fault(path: Path, clip: Clip) -> str | None:
    try:
        h, w, _ = ImageFile(path).read().shape
    except Unreadable as error:
        return error.why
    first = clip.image_size
    return None if (h, w) == first else f"is {w}x{h}; the first frame is {first[1]}x{first[0]}"


def _video_fault(path: Path, clip: Clip) -> str | None:
    try:
        count = sum(1 for _ in decoded(path))
    except Unreadable as error:
        return error.why
    return None if count == len(clip.frames) else f"has {len(clip.frames)} frames, {count} decode"
