"""What training sees of any data: pictures of people of one size, their key points, their pairs."""

import abc
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.people.keypoints import flip

log = logging.getLogger(__name__)


class Unreadable(ValueError):
    """A picture that is missing or broken.

    Attributes:
        path: Its file.
        why: What is wrong with that.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why

    @classmethod
    def because(cls, path: Path, error: Exception) -> "Unreadable":
        """Return the reason of an error, without the file name that its text may begin with."""
        return cls(path, str(error).removeprefix(f"{path} "))


class People(NamedTuple):
    """Pictures, uint8, and the key points of the person in each, in its pixels."""

    images: UInt8[np.ndarray, "b h w 3"]
    points: Float[np.ndarray, "b 18 3"]


def mirrored(people: People) -> People:
    """Mirror pictures and points; left becomes right."""
    return People(people.images[:, :, ::-1].copy(), flip(people.points, people.images.shape[2]))


class Pictures(abc.ABC):
    """Pictures of people, numbered from 0, read when asked for.

    Attributes:
        size: Height and width of every picture.
        points: Of every picture, as in keypoints.py.
        pairs: Numbers of a source and a target that show one person; none if unpaired.
        bank: Points that a person can be asked to take; None for those of the pictures.
        broken: Pictures that could not be read so far, and why.
    """

    size: tuple[int, int]
    points: Float[np.ndarray, "N 18 3"]
    pairs: Int[np.ndarray, "P 2"]
    bank: Float[np.ndarray, "M 18 3"] | None
    broken: dict[int, str]

    @abc.abstractmethod
    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read one picture.

        Raises:
            Unreadable: It is missing or broken.
        """

    def __len__(self) -> int:
        return len(self.points)

    @property
    def poses(self) -> Float[np.ndarray, "M 18 3"]:
        """The points that targets are drawn from where there are no pairs."""
        return self.points if self.bank is None else self.bank

    def at(self, ids: Int[np.ndarray, "b"]) -> People:
        """Read pictures with their points; for an unreadable one, the next that is readable."""
        return self._rows(np.arange(len(self))[:, None], ids)[0]

    def images_at(self, ids: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w 3"]:
        """Read pictures as `at` does, without their points."""
        return self.at(ids).images

    def pairs_at(self, rows: Int[np.ndarray, "b"]) -> tuple[People, People]:
        """Read sources and targets of pairs; a pair that cannot be read is replaced by the next.

        The same numbers give the same pictures in every run, in whatever order they are asked for.
        """
        source, target = self._rows(self.pairs, rows)
        return source, target

    def _rows(self, table: np.ndarray, rows: np.ndarray) -> list[People]:  # table (rows, k) of ids
        if len(table) == 0:
            raise ValueError("these pictures have no pairs")
        read = [self._next_good(table, int(row)) for row in rows]
        ids = np.array([ids for ids, _ in read])
        images = np.stack([np.stack(images) for _, images in read], axis=1)
        return [People(some, self.points[column]) for some, column in zip(images, ids.T)]

    def _next_good(self, table: np.ndarray, row: int) -> tuple[np.ndarray, list[np.ndarray]]:
        for step in range(len(table)):
            ids = table[(row + step) % len(table)]
            images = [image for i in ids if (image := self._image_if_good(int(i))) is not None]
            if len(images) == len(ids):
                return ids, images
        raise ValueError(f"no picture can be read; {next(iter(self.broken.values()))}")

    def _image_if_good(self, i: int) -> np.ndarray | None:
        if i in self.broken:
            return None
        try:
            return self.image(i)
        except Unreadable as error:
            self.broken[i] = str(error)
            log.warning("%s; the next good one stands in (%d so far)", error, len(self.broken))
            return None


@dataclass(frozen=True)
class Arrays(Pictures):
    """Pictures that are at hand as arrays, memory-mapped or not, such as the figures' cache."""

    images: UInt8[np.ndarray, "N h w 3"]
    points: Float[np.ndarray, "N 18 3"]
    pairs: Int[np.ndarray, "P 2"]
    bank: Float[np.ndarray, "M 18 3"] | None = None
    broken: dict[int, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.images) != len(self.points):
            raise ValueError(f"{len(self.images)} images have {len(self.points)} sets of points")
        if self.pairs.size and not 0 <= self.pairs.min() <= self.pairs.max() < len(self.points):
            raise ValueError(f"pairs name a picture beyond the {len(self.points)} that there are")

    @property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        """Height and width."""
        return self.images.shape[1], self.images.shape[2]

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.array(self.images[i])

    def _rows(self, table: np.ndarray, rows: np.ndarray) -> list[People]:
        columns = table[rows].T
        return [People(np.array(self.images[ids]), np.array(self.points[ids])) for ids in columns]
