"""Pictures read once, cut and kept as arrays, so that training neither decodes nor meets a fault.

FOLDER/images.u8      all pictures one after another, (N, h, w, 3)
FOLDER/points.npy     (N, 18, 3)
FOLDER/pairs.npy      (P, 2)
FOLDER/bank.npy       (M, 18, 3), if there is a bank of poses
FOLDER/about.json     the shape of the pictures; written last
"""

import json
import math
from pathlib import Path

import numpy as np
from tqdm import trange

from examples.common.files import check_folder, replacing
from examples.common.untrusted import BadInput, check_file, fields, read_array, read_json
from examples.people.pictures import Arrays, Pictures, Unreadable

ABOUT = "about.json"


def store(pictures: Pictures, folder: Path) -> list[str]:
    """Read every picture into a folder; return the reasons why some could not be read."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    with replacing(folder / "images.u8") as part:
        broken = _write_images(pictures, part)
    kept = np.setdiff1d(np.arange(len(pictures)), list(broken))
    _save(folder / "points.npy", pictures.points[kept])
    _save(folder / "pairs.npy", renumbered(pictures.pairs, kept))
    if pictures.bank is not None:
        _save(folder / "bank.npy", pictures.bank)
    with replacing(folder / ABOUT) as part:
        part.write_text(json.dumps({"shape": [len(kept), *pictures.size, 3]}))
    return list(broken.values())


def _write_images(pictures: Pictures, path: Path) -> dict[int, str]:
    broken = {}
    with path.open("wb") as file:
        for i in trange(len(pictures), desc="pictures", disable=None):
            try:
                file.write(pictures.image(i).tobytes())
            except Unreadable as error:
                broken[i] = str(error)
    return broken


def renumbered(pairs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the pairs whose pictures are both kept, renumbered; `kept` is sorted."""
    pairs = pairs[np.isin(pairs, kept).all(1)]
    return np.searchsorted(kept, pairs)


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def open_stored(folder: Path) -> Arrays:
    """Open what `store` wrote, with memory-mapped pictures.

    Raises:
        ValueError: The folder is not complete.
    """
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} is not a finished folder of stored pictures")
    about, images = folder / ABOUT, folder / "images.u8"
    shape = fields(read_json(about), {"shape": list}, str(about))["shape"]
    if len(shape) != 4 or not all(isinstance(x, int) and x > 0 for x in shape) or shape[3] != 3:
        raise BadInput(f"{about} says the shape {shape}; expected pictures, height, width, 3")
    check_file(images, math.prod(shape))
    if images.stat().st_size != math.prod(shape):
        raise BadInput(f"{images} does not hold the {math.prod(shape)} bytes that {ABOUT} says")
    points, pairs = _points(folder / "points.npy"), read_array(folder / "pairs.npy")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i":
        raise BadInput(f"{folder / 'pairs.npy'} holds no pairs of numbers")
    bank = _points(folder / "bank.npy") if (folder / "bank.npy").is_file() else None
    return Arrays(np.memmap(images, np.uint8, "r", shape=tuple(shape)), points, pairs, bank)


def _points(path: Path) -> np.ndarray:
    points = read_array(path)
    if points.shape[1:] != (18, 3) or points.dtype != np.float32:
        raise BadInput(f"{path} holds {points.dtype} of the shape {points.shape}, no key points")
    return points
