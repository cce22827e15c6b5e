"""What clothes are made of: patterns that close around a limb, colours that differ, photographs.

A texture is (rows, columns, 3) of uint8: down a part of the body, and once around it. Its first
column is at the back, its middle one in front, and what a viewer reads from left to right is so.
"""

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
import skimage.data
from jaxtyping import Float

PATTERNS = (
    *("horizontal stripes", "vertical stripes", "diagonal stripes", "checks", "gingham"),
    *("dots", "plaid", "waves", "zigzag", "plain", "photo"),
)
PHOTOS = (
    *("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"),
    *("retina", "brick", "grass", "gravel"),
)  # all of them come inside scikit-image's wheel
CROP = (60, 180)  # pixels of a photograph on a quarter of a body height
CONTRAST = 60  # of two colours that must be told apart, in levels of grey

Colour = tuple[int, int, int]


def pattern(name: str, shape: tuple[int, int], half: float) -> np.ndarray:
    """Make a pattern, (rows, columns) from 0 to 1: the share of the second colour.

    Args:
        name: One of PATTERNS, without "photo".
        shape: Texels.
        half: Half of a period in texels; around the part it gives way so that the ends meet.
    """
    rows, columns = shape
    y = (np.arange(rows)[:, None] + 0.5) / half
    turn = np.broadcast_to((np.arange(columns) + 0.5) / columns, shape)
    x = turn * 2 * max(1, round(columns / (2 * half)))  # an even number of half periods
    third = turn * 3 * max(1, round(columns / (3 * half)))
    match name:
        case "plain":
            return np.zeros(shape)
        case "horizontal stripes":
            return _odd(y + 0 * x)
        case "vertical stripes":
            return _odd(x)
        case "diagonal stripes":
            return _odd(x + y)
        case "checks":
            return _odd(np.floor(x) + np.floor(y))
        case "gingham":
            return (_odd(x) + _odd(y + 0 * x)) / 2
        case "plaid":
            return ((np.floor(third) % 3 == 0) * 0.5) + (np.floor(y) % 3 == 0) * 0.5
        case "dots":
            return ((x % 2 - 1) ** 2 + (y % 2 - 1) ** 2 < 0.65**2) * 1.0
        case "waves":
            return _odd(y + 0.5 * np.sin(np.pi * x))
        case "zigzag":
            return _odd(y + np.abs(x % 2 - 1))
    raise ValueError(f"unknown pattern {name!r}; expected one of {', '.join(map(repr, PATTERNS))}")


def _odd(cells: np.ndarray) -> np.ndarray:
    return np.floor(cells) % 2


@dataclass(frozen=True)
class Patch:
    """A place in a photograph.

    Args:
        photo: One of PHOTOS.
        at: Where in it, (down, across), in shares.
        channels: Which of its channels are red, green and blue.
    """

    photo: str
    at: tuple[float, float]
    channels: tuple[int, int, int] = (0, 1, 2)

    def cut(self, wanted: Float[np.ndarray, "2"]) -> PIL.Image.Image:
        """Cut out so many rows and columns, or as many as there are."""
        pixels = load_photo(self.photo)
        size = np.minimum(wanted, pixels.shape[:2]).astype(int)
        top, left = (np.array(self.at) * (pixels.shape[:2] - size)).astype(int)
        crop = pixels[top : top + size[0], left : left + size[1], list(self.channels)]
        return PIL.Image.fromarray(crop)


@dataclass(frozen=True)
class Cloth:
    """What one garment is made of, for all its parts.

    Args:
        pattern: One of PATTERNS.
        half: Half of a period in body heights.
        colours: Two that can be told apart.
        patch: For the pattern "photo".
        zoom: Pixels of the photograph on a body height.
    """

    pattern: str
    half: float
    colours: tuple[Colour, Colour]
    patch: Patch
    zoom: float


def draw_cloth(generator: np.random.Generator, least_half: float) -> Cloth:
    """Draw a random cloth; `least_half` bounds `half` from below."""
    first = draw_colour(generator)
    pattern = str(generator.choice(PATTERNS))
    half = generator.uniform(least_half, max(2.1 * least_half, 0.08))
    colours = first, draw_contrast(generator, first)
    photo, zoom = str(generator.choice(PHOTOS)), 4 * generator.uniform(*CROP)
    patch = Patch(photo, (generator.random(), generator.random()))
    return Cloth(pattern, half, colours, patch, zoom)


def weave(cloth: Cloth, shape: tuple[int, int], density: float) -> np.ndarray:
    """Weave a texture of a shape, with `density` texels to a body height."""
    if cloth.pattern == "photo":
        return photo(cloth, shape, density)
    return dye(pattern(cloth.pattern, shape, cloth.half * density), *cloth.colours)


def photo(cloth: Cloth, shape: tuple[int, int], density: float) -> np.ndarray:
    """Crop a photograph, as it is on the front half and mirrored on the back."""
    rows, columns = shape
    crop = cloth.patch.cut(np.array([rows, columns / 2]) * cloth.zoom / density)
    half = columns // 2
    front, back = (
        np.asarray(crop.resize((wide, rows), PIL.Image.Resampling.BOX))
        for wide in (half, columns - half)
    )
    return np.roll(np.concatenate([front, back[:, ::-1]], axis=1), half // 2, axis=1)


@cache
def load_photo(name: str) -> np.ndarray:
    """Load a photograph, (height, width, 3) uint8."""
    pixels = np.asarray(getattr(skimage.data, name)())
    return np.ascontiguousarray(np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)))


def dye(mask: np.ndarray, first: Colour, second: Colour) -> np.ndarray:
    """Colour a mask from 0 to 1 with two colours."""
    ends = np.array(first, np.float64), np.array(second, np.float64)
    return (ends[0] + mask[..., None] * (ends[1] - ends[0])).astype(np.uint8)


def draw_colour(generator: np.random.Generator) -> Colour:
    hue, saturation, value = generator.uniform((0, 0.15, 0.15), (1, 0.95, 1))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_contrast(generator: np.random.Generator, *others: Colour) -> Colour:
    """Draw a colour lighter or darker than each of the others, black or white if need be."""
    for _ in range(20):
        colour = draw_colour(generator)
        if all(abs(grey(colour) - grey(other)) >= CONTRAST for other in others):
            return colour
    return max(((0, 0, 0), (255, 255, 255)), key=lambda c: abs(grey(c) - grey(others[0])))


def grey(colour: Colour) -> float:
    """Return the luma of Rec. 601."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def shade(colour: Colour, factor: float) -> Colour:
    """Scale the brightness: darker below 1, lighter above."""
    red, green, blue = (min(255, int(part * factor)) for part in colour)
    return red, green, blue
