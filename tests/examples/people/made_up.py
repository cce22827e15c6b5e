"""Tiny folders of made-up data."""

import json
from pathlib import Path

import av
import numpy as np
import PIL.Image

from examples.people.keypoints import COCO_NAMES, NAMES

# fmt: off
STANDING = {  # in a picture of 256 rows and 176 columns, facing the camera
    "nose": (88, 30), "neck": (88, 60), "rsho": (68, 60), "relb": (58, 90), "rwri": (50, 120),
    "lsho": (108, 60), "lelb": (118, 90), "lwri": (126, 120), "rhip": (76, 130), "rkne": (74, 180),
    "rank": (72, 230), "lhip": (100, 130), "lkne": (102, 180), "lank": (104, 230), "reye": (84, 26),
    "leye": (92, 26), "rear": (80, 28), "lear": (96, 28),
}
# fmt: on


def standing(shift: float = 0.0) -> np.ndarray:
    """Points (18, 2) of somebody who stands, so much further right."""
    return np.array([STANDING[name] for name in NAMES], np.float64) + np.array([shift, 0])


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random smooth colours, height and width as given."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.array(PIL.Image.fromarray(rough).resize(size[::-1], PIL.Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def annotation(name: str, points: np.ndarray) -> str:
    """A line of PATN's list: y before x."""
    y, x = (json.dumps([int(v) for v in points[:, axis]]) for axis in (1, 0))
    return f"{name}: {y}: {x}"


def deepfashion(root: Path, count: int = 4, split: str = "train") -> Path:
    """A faultless split; each picture is paired with the next."""
    names = [f"fashionWOMENDressesid0000000{i}01_1front.jpg" for i in range(count)]
    for i, name in enumerate(names):
        save(root / split / name, picture((256, 176), i))
    rows = [annotation(name, standing(i)) for i, name in enumerate(names)]
    write(root / f"fasion-resize-annotation-{split}.csv", ["name:keypoints_y:keypoints_x", *rows])
    pairs = [f"{a},{b}" for a, b in zip(names, names[1:] + names[:1])]
    write(root / f"fasion-resize-pairs-{split}.csv", ["from,to", *pairs])
    return root


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def change_line(path: Path, number: int, line: str) -> None:
    """Replace a line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write(path, lines)


def clip_of_images(root: Path, name: str, frames: int = 5) -> Path:
    """A clip of pictures of 300 rows and 400 columns, with key points as JSON."""
    folder = root / name
    for i in range(frames):
        save(folder / "frames" / f"{i:03}.png", picture((300, 400), i))
    points = [standing(20 * i).tolist() for i in range(frames)]
    (folder / "keypoints.json").write_text(json.dumps(points))
    return folder


def clip_of_video(root: Path, name: str, frames: int = 24) -> Path:
    """A video of grey frames, each 10 brighter than the one before; key points as .npz."""
    folder = root / name
    folder.mkdir(parents=True)
    write_video(
        folder / "clip.mp4", [np.full((256, 176, 3), 10 * i, np.uint8) for i in range(frames)]
    )
    points = np.stack([standing(i) for i in range(frames)])
    confident = np.ones_like(points[..., :1])
    np.savez(folder / "keypoints.npz", keypoints=np.concatenate([points, confident], axis=2))
    return folder


def write_video(path: Path, frames: list[np.ndarray], turned: int = 0) -> None:
    """H.264 with a key frame every eight frames, and frames between that depend on later ones."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 8
        if turned:
            stream.set_display_rotation(turned)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def singles(root: Path, count: int = 3) -> Path:
    """Pictures with key points as CSV, COCO's 17 with confidence."""
    columns = ["name"] + [f"{name}_{axis}" for name in COCO_NAMES for axis in ("x", "y", "c")]
    rows = []
    for i in range(count):
        save(root / f"{i}.png", picture((256, 176), i))
        numbers = [(*STANDING[name], 0.9) for name in COCO_NAMES]
        rows.append(",".join([f"{i}.png", *(f"{v:g}" for point in numbers for v in point)]))
    write(root / "keypoints.csv", [",".join(columns), *rows])
    return root
