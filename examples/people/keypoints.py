"""The 18 key points of a person, as numbers, as heat maps and as a drawing.

A point is x, y in pixels, where the centre of the first pixel is 0, 0, and 1; a missing one is
-1, -1 and 0. Left and right are the person's own. Source of the order and of the heat maps:
OpenPose and Zhu et al. 2019 ("Progressive pose attention transfer"), whose own labels call the
points 14 to 17 left eye, right eye, left ear, right ear: they are the right ones first.
"""

import colorsys
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# fmt: off
NAMES = (
    "nose", "neck", "rsho", "relb", "rwri", "lsho", "lelb", "lwri", "rhip", "rkne", "rank",
    "lhip", "lkne", "lank", "reye", "leye", "rear", "lear",
)
COCO_NAMES = (
    "nose", "leye", "reye", "lear", "rear", "lsho", "rsho", "lelb", "relb", "lwri", "rwri",
    "lhip", "rhip", "lkne", "rkne", "lank", "rank",
)
# fmt: on
MIRRORED = tuple(
    NAMES.index({"r": "l", "l": "r"}.get(name[0], name[0]) + name[1:]) for name in NAMES
)
LIMBS = tuple(
    (NAMES.index(start), NAMES.index(end))
    for start, end in [
        *[("neck", "rsho"), ("rsho", "relb"), ("relb", "rwri")],
        *[("neck", "lsho"), ("lsho", "lelb"), ("lelb", "lwri")],
        *[("neck", "rhip"), ("rhip", "rkne"), ("rkne", "rank")],
        *[("neck", "lhip"), ("lhip", "lkne"), ("lkne", "lank")],
        *[("neck", "nose"), ("nose", "reye"), ("reye", "rear"), ("nose", "leye"), ("leye", "lear")],
    ]
)
COMPATS = (None, "patn_uint8")
NOBODY = np.tile(np.float32([-1, -1, 0]), (len(NAMES), 1))
Points = TypeVar("Points", Tensor, np.ndarray)


def heat_maps(
    points: Float[Tensor, "b 18 3"], size: tuple[int, int], sigma: float, compat: str | None = None
) -> Float[Tensor, "b 18 h w"]:
    """Make a map for each point: a Gaussian of height 1, zeros if the point is missing or outside.

    Args:
        points: Of each picture.
        size: Height and width of the maps.
        sigma: Standard deviation of the bumps in pixels; PATN has 6 at 256x176.
        compat: "patn_uint8" gives what PATN's preparation script does, which rounds all but the
            very centre down to 0: a single 1 a map.

    Returns:
        Maps in float32.

    Raises:
        ValueError: `compat` is unknown.
    """
    if compat not in COMPATS:
        raise ValueError(f"unknown compat {compat!r}; expected one of {COMPATS}")
    points = points.float().round() if compat else points.float()
    there = on_picture(points, size)
    x, y = points[..., :2].masked_fill(~there[..., None], 0).unbind(-1)
    rows = _bumps(y, size[0], sigma) * there[..., None]
    maps = rows[..., :, None] * _bumps(x, size[1], sigma)[..., None, :]
    return maps.floor() if compat else maps


def _bumps(centre: Tensor, length: int, sigma: float) -> Tensor:  # (b, 18) -> (b, 18, length)
    places = torch.arange(length, device=centre.device)
    return torch.exp(-(((places - centre[..., None]) / sigma) ** 2) / 2)


def on_picture(points: Points, size: tuple[int, int]) -> Points:
    """Tell which of the points (..., 18, 3) exist and lie on a pixel."""
    x, y, present = points[..., 0], points[..., 1], points[..., 2]
    within = (x >= -0.5) & (x < size[1] - 0.5) & (y >= -0.5) & (y < size[0] - 0.5)
    return within & (present > 0)


def locate(maps: Float[Tensor, "b 18 h w"], threshold: float = 0.1) -> Float[Tensor, "b 18 3"]:
    """Find the pixel where each map is highest; missing unless above the threshold."""
    height, place = maps.flatten(2).max(dim=2)
    points = torch.stack([place % maps.shape[3], place // maps.shape[3], 0 * place + 1], dim=2)
    missing = points.new_tensor([-1, -1, 0])
    return torch.where(height[..., None] > threshold, points, missing).float()


def flip(points: Points, width: int) -> Points:
    """Mirror the points (..., 18, 3): what was left is right."""
    flipped = points[..., list(MIRRORED), :]
    flipped[..., 0] = flipped[..., 2] * (width - flipped[..., 0]) - 1
    return flipped


def tidy(
    points: Float[np.ndarray, "*frames k c"], least: float = 0.0
) -> Float[np.ndarray, "*frames k 3"]:
    """Bring the points of any detector into the form of this file.

    Args:
        points: x, y or x, y and confidence (or COCO's visibility). Missing ones are negative, not
            finite, or not above the least confidence.
        least: Confidence that a point must exceed.
    """
    where = points[..., :2]
    there = np.isfinite(points).all(-1) & (where > -0.5).all(-1)
    if points.shape[-1] > 2:
        there &= points[..., 2] > least
    tidied = np.concatenate([where, np.ones_like(where[..., :1])], axis=-1)
    return np.where(there[..., None], tidied, [-1, -1, 0]).astype(np.float32)


def from_coco(
    points: Float[np.ndarray, "*frames 17 c"], least: float = 0.0
) -> Float[np.ndarray, "*frames 18 3"]:
    """Reorder COCO's 17 points; the neck is midway between the shoulders if both exist.

    `least` is as in `tidy`.
    """
    given = dict(zip(COCO_NAMES, np.moveaxis(tidy(points, least), -2, 0)))
    right, left = given["rsho"], given["lsho"]
    both = (right[..., 2:] > 0) & (left[..., 2:] > 0)
    given["neck"] = np.where(both, (right + left) / 2, np.float32([-1, -1, 0]))
    return np.stack([given[name] for name in NAMES], axis=-2)


def draw_skeleton(
    image: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "18 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the limbs of a person onto the picture, each in its own colour."""
    finer = 4  # a smooth edge: drawn so many times larger
    h, w, _ = image.shape
    layer = PIL.Image.new("RGBA", (w * finer, h * finer))
    draw = PIL.ImageDraw.Draw(layer)
    place = [tuple((xy + 0.5) * finer) for xy in points[:, :2]]
    thick = finer * max(h, w) / 80
    for i, (start, end) in enumerate(LIMBS):
        if points[start, 2] > 0 and points[end, 2] > 0:
            draw.line([place[start], place[end]], _colour(i / len(LIMBS)), round(thick))
    for i in np.flatnonzero(points[:, 2] > 0):
        draw.circle(place[i], 0.7 * thick, _colour(i / len(NAMES)))
    drawn = PIL.Image.fromarray(image).convert("RGBA")
    drawn.alpha_composite(layer.resize((w, h), PIL.Image.Resampling.BOX))
    return np.array(drawn.convert("RGB"))


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 0.95))
    return red, green, blue
