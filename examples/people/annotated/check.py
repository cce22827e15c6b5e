"""How well do the annotations of four cameras agree? Each point against the other cameras' place.

    python -m examples.people.annotated.check

Each point that three cameras or more show is taken away from one of them; the others say where in
space it is, and so where that camera should show it. The distance from where the annotation has it
holds the errors of all of them, so it is more than the error of one. The cameras were started by
hand: first the number of frames by which each is late is found, between the annotated frames by
interpolation. Writes agreement.json and agreement.md: medians and ninth deciles, in pixels of the
frame (1088x1920) and of a person cut out at 256x128.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from examples.common.commands import command
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import markdown_table
from examples.people.annotated.__main__ import CONFIDENCE, MARGIN, View, in_wheel, views
from examples.people.annotated.cameras import Projection, projected, read_qualisys, triangulated
from examples.people.geometry import person_box
from examples.people.keypoints import NAMES

CALIBRATION = "Demo_SinglePerson/calibration/Calib.qca.txt"
SIZE = (256, 128)  # of the cut
LEAST = 3  # cameras
LATEST = 9  # frames by which a camera may be late or early
ROUNDS = 2  # of finding each camera's delay, given the others'
SEEN = CONFIDENCE[2]
KINDS = ("nose", "neck", "sho", "elb", "wri", "hip", "kne", "ank", "eye", "ear")  # left and right
HEADS = ("key points", "seen or hidden", "count", "px", "ninth decile", "px of 256", "ninth decile")


@dataclass(frozen=True)
class Track:
    """What the annotations say of one camera, frame by frame."""

    camera: Projection
    frames: Float[np.ndarray, " t"]
    points: Float[np.ndarray, "t 18 3"]
    scale: float  # pixels of the cut in one of the frame, in the middle of its frames

    @property
    def places(self) -> Float[np.ndarray, "t 18 3"]:
        """x, y and whether it is seen; NaN where there is no such point."""
        there = self.points[..., 2:] > 0
        return np.where(
            there, np.dstack([self.points[..., :2], self.points[..., 2] == SEEN]), np.nan
        )

    def at(self, frame: float) -> Float[np.ndarray, "18 3"]:
        """Interpolate between the annotated frames; NaN before, after, and next to what is NaN."""
        after = int(np.searchsorted(self.frames, frame))
        if after < len(self.frames) and self.frames[after] == frame:
            return self.places[after]
        if not 0 < after < len(self.frames):
            return np.full((len(NAMES), 3), np.nan)
        start, end = self.frames[after - 1 : after + 1]
        part = (frame - start) / (end - start)
        between = (1 - part) * self.places[after - 1] + part * self.places[after]
        between[:, 2] = np.floor(between[:, 2])  # seen in both, or hidden
        return between


@dataclass(frozen=True)
class Distance:
    """How far an annotated point lies from where the other cameras have it."""

    name: str
    seen: bool
    frame_px: float
    cut_px: float


def main(out: Path = Path("runs/agreement")) -> None:
    """Measure the agreement and write it down.

    Args:
        out: Folder of the tables.
    """
    check_folder(out)
    tracks = tracks_of(views(), read_qualisys(in_wheel("Pose2Sim", CALIBRATION)))
    delays = delays_of(list(tracks.values()))
    apart = list(distances(list(tracks.values()), delays))
    rows = [summary(name, seen, apart) for name in ("all", *KINDS) for seen in (True, False)]
    late = dict(zip(tracks, delays, strict=True))
    write_json(out / "agreement.json", {"frames_late": late, "distances": rows})
    said = ", ".join(f"{name} {delay:+}" for name, delay in late.items())
    table = markdown_table(HEADS, [cells(row) for row in rows if row["count"]])
    write_text(out / "agreement.md", f"{__doc__}\nFrames late: {said}.\n\n{table}\n")
    print(table)


def tracks_of(found: list[View], cameras: dict[str, Projection]) -> dict[str, Track]:
    """Pair the views of the calibrated scene with their cameras, by the names of the videos."""
    scene = Path(CALIBRATION).parts[0]
    of_scene = [each for each in found if scene in each.video.parts]
    return {each.video.stem: track_of(each, cameras[each.video.stem]) for each in of_scene}


def track_of(view: View, camera: Projection) -> Track:
    points = np.stack(list(view.points.values())).astype(float)
    boxes = [person_box(each, SIZE, MARGIN) for each in points]
    scale = SIZE[0] / float(np.median([bottom - top for _, top, _, bottom in boxes]))
    return Track(camera, np.array(list(view.points), float), points, scale)


def delays_of(tracks: list[Track]) -> list[int]:
    """Find how many frames each camera is late against the first, one after the other."""
    delays = [0] * len(tracks)
    for i in tqdm(ROUNDS * [*range(1, len(tracks))], "delays", disable=None):
        tries = [[*delays[:i], by, *delays[i + 1 :]] for by in range(-LATEST, LATEST + 1)]
        delays = min(tries, key=lambda each: (median(tracks, each), abs(each[i])))
    return delays


def median(tracks: list[Track], delays: Sequence[int]) -> float:
    return float(np.median([each.frame_px for each in distances(tracks, delays)]))


def distances(tracks: list[Track], delays: Sequence[int]) -> Iterator[Distance]:
    """Go through the frames of the first camera, the points, and the cameras that show them."""
    for frame in tracks[0].frames:
        shown = np.stack([each.at(frame + by) for each, by in zip(tracks, delays, strict=True)])
        for point, name in enumerate(NAMES):
            by = [i for i in range(len(tracks)) if not np.isnan(shown[i, point, 0])]
            for i in by if len(by) >= LEAST else []:
                others = [j for j in by if j != i]
                cameras = np.stack([tracks[j].camera for j in others])
                place = triangulated(cameras, shown[others, point, :2])
                off = shown[i, point, :2] - projected(tracks[i].camera, place)
                apart = float(np.linalg.norm(off))
                yield Distance(name, bool(shown[i, point, 2]), apart, apart * tracks[i].scale)


def summary(name: str, seen: bool, apart: list[Distance]) -> dict[str, Any]:
    """Count and sum up what is of this kind."""
    kind = [x for x in apart if x.seen == seen and (name == "all" or x.name.endswith(name))]
    said: dict[str, Any] = {"name": name, "seen": seen, "count": len(kind)}
    for unit in ("frame_px", "cut_px") if kind else ():
        values = [getattr(x, unit) for x in kind]
        said[unit] = {"median": np.median(values).item(), "ninth": np.quantile(values, 0.9).item()}
    return said


def cells(row: dict[str, Any]) -> list[str]:
    figures = [row[unit][of] for unit in ("frame_px", "cut_px") for of in ("median", "ninth")]
    kind = "seen" if row["seen"] else "hidden"
    return [row["name"], kind, str(row["count"]), *(f"{x:.1f}" for x in figures)]


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
