"""Pictures that stay on disk until they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8

from examples.common.untrusted import PICTURES, PIXELS, BadInput, check_file, decoding, read_picture
from examples.people.geometry import cut
from examples.people.pictures import Pictures, Unreadable

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Frame(Protocol):
    """Anything that can be read as a picture."""

    @property
    def path(self) -> Path:
        """The file that it is in."""

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture; raises Unreadable."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image, turned as its camera says; what is transparent is white."""

    path: Path

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        try:
            picture = read_picture(self.path)
            with decoding(self.path, "a picture"):
                picture = picture.convert("RGBA")
        except BadInput as error:
            raise Unreadable.because(self.path, error) from error
        white = PIL.Image.new("RGBA", picture.size, "white")
        return np.array(PIL.Image.alpha_composite(white, picture).convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width, from the first bytes of the file alone.

    Raises:
        Unreadable: It is missing or no image, or has more pixels than are read.
    """
    try:
        check_file(path, 16 * PIXELS)
        with decoding(path, "a picture"), PIL.Image.open(path, formats=PICTURES) as file:
            turned = file.getexif().get(0x0112, 1) >= 5  # orientations with the sides swapped
            h, w = file.size if turned else file.size[::-1]
    except BadInput as error:
        raise Unreadable.because(path, error) from error
    if h * w > PIXELS:
        raise Unreadable(path, f"has {w}x{h} pixels; at most {PIXELS} are read")
    return h, w


@dataclass(frozen=True)
class Files(Pictures):
    """Image files or frames of videos, each cut by its box and brought to one size."""

    size: tuple[int, int]
    frames: Sequence[Frame]
    boxes: Int[np.ndarray, "N 4"]
    points: Float[np.ndarray, "N 18 3"]
    pairs: Int[np.ndarray, "P 2"]
    bank: Float[np.ndarray, "M 18 3"] | None = None
    broken: dict[int, str] = field(default_factory=dict, repr=False)

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        left, top, right, bottom = map(int, self.boxes[i])
        try:
            return cut(self.frames[i].read(), (left, top, right, bottom), self.size)
        except Unreadable:
            raise
        except ValueError as error:
            raise Unreadable(self.frames[i].path, str(error)) from error
