"""Cutting a person out of a picture, and the key points with it.

A box is left, top, right, bottom in whole pixels, the last two exclusive. It may reach beyond the
picture; white is there.
"""

import math

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from examples.common.untrusted import PIXELS
from examples.people.keypoints import on_picture

Box = tuple[int, int, int, int]


def whole_box(image_size: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the smallest box with the proportions of `size` around a picture (height, width)."""
    h, w = image_size
    return box_around((0, 0, w, h), size)


def person_box(
    points: Float[np.ndarray, "*frames 18 3"], size: tuple[int, int], margin: float = 0.12
) -> Box:
    """Return a box with the proportions of `size` around all points that exist.

    Args:
        points: Of one picture, or of all frames of a clip; at least one is there.
        size: Height and width that the box is brought to.
        margin: Room on each side, as a part of the longer side of what is around the points: key
            points end at the eyes, the wrists and the ankles.
    """
    places = points[points[..., 2] > 0][:, :2]
    (left, top), (right, bottom) = places.min(0), places.max(0) + 1
    room = margin * max(right - left, bottom - top)
    return box_around((left - room, top - room, right + room, bottom + room), size)


def box_around(inner: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    """Return the smallest box around this one, centred alike, with the proportions of `size`."""
    left, top, right, bottom = inner
    scale = max((right - left) / size[1], (bottom - top) / size[0])
    w, h = math.ceil(scale * size[1]), math.ceil(scale * size[0])
    left, top = round((left + right - w) / 2), round((top + bottom - h) / 2)
    return left, top, left + w, top + h


def moved_inside(box: Box, image_size: tuple[int, int]) -> Box:
    """Move the box into a picture (height, width) along each axis on which it fits."""
    left, right = _moved(box[0], box[2], image_size[1])
    top, bottom = _moved(box[1], box[3], image_size[0])
    return left, top, right, bottom


def _moved(start: int, end: int, length: int) -> tuple[int, int]:
    by = max(-start, 0) - max(end - length, 0) if end - start <= length else 0
    return start + by, end + by


def cut(
    image: UInt8[np.ndarray, "k l 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Cut out what is in the box, and bring it to `size`.

    Raises:
        ValueError: The box is too large to be cut.
    """
    left, top, right, bottom = box
    if (right - left) * (bottom - top) > 4 * PIXELS:
        raise ValueError(
            f"needs a box of {right - left}x{bottom - top} pixels; at most {4 * PIXELS} are cut"
        )
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    framed = np.full((bottom - top, right - left, 3), 255, np.uint8)
    framed[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    if framed.shape[:2] == size:
        return framed
    return np.array(PIL.Image.fromarray(framed).resize(size[::-1], PIL.Image.Resampling.LANCZOS))


def cut_points(
    points: Float[np.ndarray, "*frames 18 3"], box: Box, size: tuple[int, int]
) -> Float[np.ndarray, "*frames 18 3"]:
    """Move the points as `cut` moves the picture; those outside the box count as missing."""
    left, top, right, bottom = box
    scale = np.array([size[1] / (right - left), size[0] / (bottom - top)])
    moved = points.astype(np.float64)
    moved[..., :2] = (moved[..., :2] - (left, top) + 0.5) * scale - 0.5
    there = on_picture(moved, size) & (points[..., 2] > 0)
    return np.where(there[..., None], moved, [-1, -1, 0]).astype(np.float32)
