"""Which part each ray meets first, and where.

A capsule is two balls and the cone that touches both. In its own axes, squeezed so that it is
round, the point of a ray at depth z is p(z) = base + z * step, and each of the three surfaces makes
a quadratic equation a z^2 + 2 b z + c = 0, whose root on the viewer's side is wanted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from examples.people.figures.body import Capsule
from examples.people.figures.camera import GROUND, Camera

NOWHERE = np.float32(-9)  # the depth where nothing is


@dataclass(frozen=True)
class Surface:
    """What each ray sees.

    Args:
        depth: NOWHERE for the background.
        part: 0, or 1 + the number of the capsule.
        point: In the capsule's axes, squeezed so that it is round.
    """

    depth: Float[np.ndarray, "h w"]
    part: UInt8[np.ndarray, "h w"]
    point: Float[np.ndarray, "h w 3"]


def cast(shapes: list[Capsule], camera: Camera, finer: int) -> Surface:
    """Cast `finer` x `finer` rays a pixel."""
    h, w = camera.height * finer, camera.width * finer
    x = ((np.arange(w) + 0.5) / finer - camera.width / 2) / camera.scale
    y = (camera.height * (1 - GROUND) - (np.arange(h) + 0.5) / finer) / camera.scale
    depth = np.full((h, w), NOWHERE, np.float32)
    part, point = np.zeros((h, w), np.uint8), np.zeros((h, w, 3), np.float32)
    for number, shape in enumerate(shapes, start=1):
        box = _box(shape, x, y)
        z, at = meet(shape, x[box[1]], y[box[0]])
        nearer = z > depth[box]
        depth[box][nearer] = z[nearer]
        part[box][nearer] = number
        point[box][nearer] = at[nearer]
    return Surface(depth, part, point)


def _box(shape: Capsule, x: np.ndarray, y: np.ndarray) -> tuple[slice, slice]:
    """Find the rows and columns that the capsule can cover; x rises, y falls."""
    ends = np.stack([shape.low, shape.high])[:, :2]
    reach = np.array(shape.radii)[:, None] * max(1.0, *shape.squeeze)
    left, bottom = (ends - reach).min(axis=0)
    right, top = (ends + reach).max(axis=0)
    rows = slice(*np.searchsorted(-y, (-top, -bottom)))
    return rows, slice(*np.searchsorted(x, (left, right)))


def meet(
    shape: Capsule, x: Float[np.ndarray, "w"], y: Float[np.ndarray, "h"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """Return depth (NOWHERE where the capsule is missed) and point for the rays at x and y."""
    into = (shape.frame * (1 / shape.squeeze[0], 1, 1 / shape.squeeze[1])).T
    step = into[:, 2].astype(np.float32)
    across = into[:, :1] * (x - shape.low[0])
    down = into[:, 1:2] * (y - shape.low[1]) - into[:, 2:] * shape.low[2]
    base = (down[:, :, None] + across[:, None, :]).astype(np.float32)  # (3, h, w)
    low, high = shape.radii
    depth = np.maximum(_ball(base, step, shape.length, high), _cone(base, step, shape))
    if not shape.open_below:
        depth = np.maximum(depth, _ball(base, step, 0.0, low))
    return depth, np.moveaxis(base + step[:, None, None] * depth, 0, -1)


def _ball(base: np.ndarray, step: np.ndarray, centre: float, radius: float) -> np.ndarray:
    """Intersect with a ball at (0, centre, 0)."""
    u, v, w = base[0], base[1] - np.float32(centre), base[2]
    a = step @ step
    b = u * step[0] + v * step[1] + w * step[2]
    c = u * u + v * v + w * w - np.float32(radius**2)
    return _front(a, b, c)


def _cone(base: np.ndarray, step: np.ndarray, shape: Capsule) -> np.ndarray:
    """Intersect with the cone that touches both balls, between the circles of contact."""
    low, high = shape.radii
    sine = (low - high) / shape.length
    cosine = np.sqrt(1 - sine**2)
    radius, slope = np.float32(low / cosine), np.float32(-sine / cosine)
    u, v, w = base
    reach = radius + slope * v
    a = step[0] ** 2 + step[2] ** 2 - (slope * step[1]) ** 2
    b = u * step[0] + w * step[2] - slope * step[1] * reach
    c = u * u + w * w - reach * reach
    depth = _front(a, b, c)
    height = v + depth * step[1]
    lowest = 0.0 if shape.open_below else low * sine
    within = (height >= lowest) & (height <= shape.length + high * sine)
    return np.where(within, depth, NOWHERE)


def _front(a: np.float32, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the root on the viewer's side.

    On a cone that points steeply at the viewer, a < 0, this is the smaller root: the larger lies
    on the cone's other half.
    """
    discriminant = b * b - a * c
    root = (np.sqrt(np.maximum(discriminant, 0)) - b) / (a if abs(a) > 1e-6 else np.float32(1e-6))
    return np.where(discriminant > 0, root, NOWHERE)


def normals(shape: Capsule, point: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Return unit normals in world axes at points in the axes of the capsule.

    The normal starts on the bone, at the centre of the ball that touches the surface there.
    """
    sine = (shape.radii[0] - shape.radii[1]) / shape.length
    width = np.hypot(point[:, 0], point[:, 2])
    foot = np.clip(point[:, 1] - sine / np.sqrt(1 - sine**2) * width, 0, shape.length)
    normal = (point - foot[:, None] * (0, 1, 0)) * (1 / shape.squeeze[0], 1, 1 / shape.squeeze[1])
    normal = normal @ shape.frame.T
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)
