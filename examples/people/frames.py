"""One picture on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from examples.people.pictures import Unreadable

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_DAMAGE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)


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
            with PIL.Image.open(self.path) as file:
                picture = PIL.ImageOps.exif_transpose(file).convert("RGBA")
        except _DAMAGE as error:
            raise Unreadable(self.path, f"cannot be read as an image: {reason(error)}") from error
        white = PIL.Image.new("RGBA", picture.size, "white")
        return np.array(PIL.Image.alpha_composite(white, picture).convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width, from the first bytes of the file alone.

    Raises:
        Unreadable: It is missing or no image.
    """
    try:
        with PIL.Image.open(path) as file:
            turned = file.getexif().get(0x0112, 1) >= 5  # orientations with the sides swapped
            return file.size if turned else file.size[::-1]
    except _DAMAGE as error:
        raise Unreadable(path, f"cannot be read as an image: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What went wrong, without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
