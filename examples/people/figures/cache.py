"""Figures rendered ahead, in a folder of memory-mapped arrays.

    folder/images.npy   (n, h, w, 3) uint8
           points.npy   (n, 18, 3) float32: x, y, seen
           yaw.npy      (n,) float32, radians
           part.npy     (n, h, w) uint8             with --truth
           local.npy    (n, h, w, 3) float16        with --truth
           done.npy     (identities,) uint8: which are written
           figures.json the options and the version; written last

Row `identity * poses + pose` is a figure of draw_figure. The first 14/15 of the identities are for
training, 1/30 for validation, 1/30 for the test. A build that was stopped goes on where it was.
"""

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from examples.common.commands import Stopped, check_count, check_number, ignore_interrupts, locked
from examples.common.files import replacing
from examples.common.untrusted import BadInput, decoding, fields, of_kind, read_json
from examples.people.figures.camera import Camera
from examples.people.figures.render import looks_of, render
from examples.people.figures.skeleton import KEY_POINTS

KINDS: dict[str, Any] = {
    **{"version": int, "size": list, "identities": int, "poses": int, "seed": int, "truth": bool},
    "photos": (int, float),
}
MOST = 10**7  # identities, and poses of each
VERSION = 1  # of the drawing and of the files: other numbers are other pictures
SPLITS = {"train": (0, 28), "validation": (28, 29), "test": (29, 30)}  # of 30 parts
NEAR = 1.0  # radians of yaw between the figures of a pair ...
FAR_SHARE = 0.04  # ... except in this share of the pairs


@dataclass(frozen=True)
class Options:
    """What is rendered.

    Args:
        size: Rows and columns of the pictures.
        identities: Different people, at least 30.
        poses: Pictures of each.
        seed: Other seeds are other people.
        truth: Also the part and the surface point of every pixel, 7 bytes each.
        photos: The share of the cloths and of the backdrops that are patches of photographs.
    """

    size: tuple[int, int] = (128, 64)
    identities: int = 1500
    poses: int = 6
    seed: int = 0
    truth: bool = True
    photos: float = 0.0

    def __post_init__(self) -> None:
        Camera(*self.size)
        check_count("--options.seed", self.seed, 0, 2**32 - 1)
        check_number("--photos", self.photos, 0.0, 1.0)
        for name in ("identities", "poses"):
            check_count(name, getattr(self, name), least=0, most=MOST)
        if self.identities < 30 or self.poses < 2:
            raise ValueError(
                f"{self.identities} identities in {self.poses} poses do not make three splits of "
                "pairs; at least 30 in 2 are needed"
            )

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """The shapes and dtypes of the arrays."""
        n = self.identities * self.poses
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "images": ((n, *self.size, 3), np.uint8),
            "points": ((n, len(KEY_POINTS), 3), np.float32),
            "yaw": ((n,), np.float32),
            "done": ((self.identities,), np.uint8),
        }
        if self.truth:
            shapes["part"] = (n, *self.size), np.uint8
            shapes["local"] = (n, *self.size, 3), np.float16
        return shapes

    def written(self) -> dict[str, Any]:
        """The options as the JSON files have them."""
        said = {name: x for name, x in asdict(self).items() if name != "photos" or x}
        return json.loads(json.dumps({"version": VERSION, **said}))


def build(folder: Path, options: Options, workers: int = 2) -> None:
    """Render all figures into `folder`, or those that are still missing.

    Args:
        workers: Processes; 0 to render in this one.

    Raises:
        ValueError: The folder holds figures of other options, or `workers` is negative.
        OSError: A process died, as on a full disk.
        Stopped: Ctrl-C; what was rendered stays.
    """
    check_count("workers", workers, least=0, most=1024)
    with locked(folder):
        _build(folder, options, workers)


def _build(folder: Path, options: Options, workers: int) -> None:
    if _read(folder / "figures.json", options) is not None:
        return
    if _read(folder / "started.json", options) is None:
        _start(folder, options)
    done = np.load(folder / "done.npy", mmap_mode="r")
    missing = np.flatnonzero(done == 0).tolist()
    try:
        if workers == 0:
            fill(folder, options, tqdm(missing, "identities"))
        else:
            _fill_in_processes(folder, options, [missing[i::workers] for i in range(workers)], done)
    except KeyboardInterrupt as error:
        raise Stopped(
            f"{folder} has {int(done.sum())} of {len(done)} identities; the same command continues"
        ) from error
    with replacing(folder / "figures.json") as part:
        part.write_text(json.dumps(options.written(), indent=1))
    (folder / "started.json").unlink()


def _read(path: Path, options: Options) -> dict[str, Any] | None:
    """Read the options that a folder was made with, and refuse others."""
    if not path.is_file():
        return None
    found = read_json(path)
    if found != options.written():
        raise ValueError(
            f"{path.parent} holds figures of {found}, not {options.written()}; name another"
        )
    return found


def _start(folder: Path, options: Options) -> None:
    """Create empty arrays, then the file that says they exist."""
    needed = sum(
        math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in options.shapes.values()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(f"{folder} needs {needed} bytes for these figures; {free} are free")
    for name, (shape, dtype) in options.shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    with replacing(folder / "started.json") as part:
        part.write_text(json.dumps(options.written(), indent=1))


def fill(
    folder: Path, options: Options, identities: Iterable[int], parent: int | None = None
) -> None:
    """Render some identities into the arrays; stop when the parent process is gone."""
    if parent is not None:
        ignore_interrupts()
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in options.shapes}
    for identity in identities:
        if parent is not None and os.getppid() != parent:
            return
        looks = looks_of(identity, options.size, options.seed, options.photos)
        for pose in range(options.poses):
            figure = render(looks, identity, pose, options.size, options.seed)
            row = identity * options.poses + pose
            arrays["images"][row], arrays["points"][row] = figure.image, figure.points
            arrays["yaw"][row] = figure.yaw
            if options.truth:
                arrays["part"][row], arrays["local"][row] = figure.part, figure.local
        arrays["done"][identity] = 1


def _fill_in_processes(
    folder: Path, options: Options, shares: list[list[int]], done: np.ndarray
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=fill, args=(folder, options, share, os.getpid()), daemon=True)
        for share in shares
    ]
    for process in processes:
        process.start()
    _watch(processes, done)
    if not done.all():
        codes = [process.exitcode for process in processes]
        raise OSError(
            f"{(done == 0).sum()} of {len(done)} identities are missing, since the processes ended "
            f"with exit codes {codes}; start again to go on"
        )


def _watch(processes: Sequence[BaseProcess], done: np.ndarray) -> None:
    """Show a progress bar over all processes until they end."""
    with tqdm(total=len(done), initial=int(done.sum()), desc="identities", smoothing=0) as bar:
        while alive := [process for process in processes if process.is_alive()]:
            alive[0].join(timeout=0.5)
            bar.update(int(done.sum()) - bar.n)
        bar.update(int(done.sum()) - bar.n)


@dataclass(frozen=True)
class Figures:
    """One split of a folder of figures; its arrays are views of the files.

    Args:
        folder: Filled by `build`.
        split: train, validation or test.

    Raises:
        ValueError: The folder is not complete, of another version, or the split is unknown.
    """

    folder: Path
    split: str

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            names = ", ".join(map(repr, SPLITS))
            raise ValueError(f"unknown split {self.split!r}; expected one of {names}")
        if not (Path(self.folder) / "figures.json").is_file():
            raise ValueError(f"{self.folder} holds no complete set of figures")
        if self.options["version"] != VERSION:
            raise ValueError(
                f"{self.folder} holds figures of version {self.options['version']}, not {VERSION}"
            )

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options together with the version."""
        path = Path(self.folder) / "figures.json"
        said = of_kind(read_json(path), dict, str(path))
        return fields({"photos": 0.0} | said, KINDS, str(path))

    @cached_property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """The shapes of the arrays, as the options say."""
        said = {name: x for name, x in self.options.items() if name != "version"}
        try:
            return Options(**said | {"size": tuple(said["size"])}).shapes
        except (TypeError, ValueError) as error:
            raise BadInput(f"{self.folder} holds no usable figures: {error}") from error

    @property
    def identities(self) -> range:
        """Numbers of this split's identities."""
        first, last = (part * self.options["identities"] // 30 for part in SPLITS[self.split])
        return range(first, last)

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n h w 3"]:
        """Pictures."""
        return self._open("images")

    @cached_property
    def points(self) -> Float[np.ndarray, "n 18 3"]:
        """x, y in pixels and whether it is seen; -1, -1, 0 outside."""
        return self._open("points")

    @cached_property
    def yaw(self) -> Float[np.ndarray, "n"]:
        """The turn of the body in radians."""
        return self._open("yaw")

    @cached_property
    def part(self) -> UInt8[np.ndarray, "n h w"]:
        """The part of each pixel, 0 for the background; only in folders with the truth."""
        return self._open("part")

    @cached_property
    def local(self) -> Float[np.ndarray, "n h w 3"]:
        """The surface point of each pixel, float16; only in folders with the truth."""
        return self._open("local")

    @cached_property
    def pairs(self) -> Int[np.ndarray, "p 2"]:
        """Pairs of source and target of one identity: 96 % with similar turns, 4 % with any."""
        poses = self.options["poses"]
        source, target = np.nonzero(~np.eye(poses, dtype=bool))
        first = poses * np.arange(len(self.identities))[:, None, None]
        every = (first + np.stack([source, target], axis=1)).reshape(-1, 2)
        turn = np.abs(self.yaw[every[:, 0]] - self.yaw[every[:, 1]]) % (2 * np.pi)
        near = np.minimum(turn, 2 * np.pi - turn) < NEAR
        generator = np.random.default_rng([13, self.options["seed"]])
        far = generator.permutation(np.flatnonzero(~near))
        far = far[: round(FAR_SHARE / (1 - FAR_SHARE) * near.sum())]
        return every[np.sort(np.concatenate([np.flatnonzero(near), far]))]

    def _open(self, name: str) -> np.ndarray:
        rows = slice(
            *(i * self.options["poses"] for i in (self.identities[0], self.identities[-1] + 1))
        )
        path = Path(self.folder) / f"{name}.npy"
        if not path.is_file():
            raise ValueError(f"{self.folder} holds no {name!r}; render it with --truth")
        with decoding(path, "an array"):
            array = np.load(path, mmap_mode="r")
        shape, dtype = self.shapes[name]
        if array.shape != shape or array.dtype != dtype:
            raise BadInput(f"{path} holds {array.dtype} of {array.shape}, not {shape}")
        return array[rows]
