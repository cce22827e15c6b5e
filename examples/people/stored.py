"""Pictures read once, cut and kept as arrays, so that training neither decodes nor meets a fault.

FOLDER/images.u8      all pictures one after another, (N, h, w, 3)
FOLDER/points.npy     (N, 18, 3)
FOLDER/pairs.npy      (P, 2)
FOLDER/bank.npy       (M, 18, 3), if there is a bank of poses
FOLDER/about.json     the shape of the pictures; written last
"""

import json
from pathlib import Path

import numpy as np
from tqdm import trange

from examples.people.pictures import Arrays, Pictures, Unreadable
from examples.training.files import replacing

ABOUT = "about.json"


def store(pictures: Pictures, folder: Path) -> list[str]:
    """Read every picture into a folder; gives the reasons of those that could not be read."""
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
    """The pairs whose pictures are both kept, by the pictures' new numbers; `kept` is sorted."""
    pairs = pairs[np.isin(pairs, kept).all(1)]
    return np.searchsorted(kept, pairs)


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def open_stored(folder: Path) -> Arrays:
    """What `store` wrote, the pictures memory-mapped.

    Raises:
        ValueError: The folder is not complete.
    """
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} is not a finished folder of stored pictures")
    shape = json.loads((folder / ABOUT).read_text())["shape"]
    bank = folder / "bank.npy"
    return Arrays(
        np.memmap(folder / "images.u8", np.uint8, "r", shape=tuple(shape)),
        np.load(folder / "points.npy"),
        np.load(folder / "pairs.npy"),
        np.load(bank) if bank.is_file() else None,
    )
