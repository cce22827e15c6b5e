"""A wall and a floor, the same in every picture of a figure."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
from jaxtyping import Float

from examples.people.figures.camera import GROUND, Camera
from examples.people.figures.fabric import Patch

SHADOW = 0.35  # darkening below a foot
SHADOW_SIZE = 0.014, 0.075  # down and across, in body heights
LIGHT = 0.16  # how much darker the wall is at its lower corners


@dataclass(frozen=True)
class Backdrop:
    """Colours from 0 to 255; the floor ends `horizon` of the rows above the ground.

    With a `patch` of a photograph, `zoom` of whose pixels fill the height, that is the wall, mixed
    with a share `paler` of the drawn one.
    """

    wall: np.ndarray
    floor: np.ndarray
    stripe: np.ndarray
    horizon: float
    stripes: int
    patch: Patch | None = None
    zoom: float = 0.0
    paler: float = 0.0


def draw_backdrop(generator: np.random.Generator) -> Backdrop:
    """Draw a pale one, so that it does not hide the figure."""
    tone = generator.uniform(165, 245)
    wall, floor = (tone * generator.uniform(0.85, 1.0, 3) for _ in range(2))
    stripes = int(generator.integers(2, 6)) if generator.random() < 0.3 else 0
    return Backdrop(
        wall,
        floor * 0.82,
        wall * generator.uniform(0.9, 0.97),
        generator.uniform(0.03, 0.12),
        stripes,
    )


def paint(backdrop: Backdrop, camera: Camera, feet: np.ndarray) -> np.ndarray:
    """Paint it, (height, width, 3) float32, with shadows under the (n, 3) feet."""
    y = (np.arange(camera.height, dtype=np.float32)[:, None] + 0.5) / camera.height
    x = (np.arange(camera.width, dtype=np.float32) + 0.5) / camera.width - 0.5
    striped = (np.floor((x + 0.5) * (2 * backdrop.stripes + 1)) % 2)[None, :, None]
    wall = backdrop.wall + striped * (backdrop.stripe - backdrop.wall)
    if backdrop.patch is not None:
        wall = backdrop.paler * wall + (1 - backdrop.paler) * scenery(backdrop, camera)
    wall = wall * (1 - LIGHT * (y * y + 0.5 * x * x))[..., None]
    edge = np.clip((y - (1 - GROUND - backdrop.horizon)) * camera.height + 0.5, 0, 1)[..., None]
    picture = wall + edge * (backdrop.floor * (0.9 + 0.1 * y)[..., None] - wall)
    return (picture * _shadow(camera, feet)[..., None]).astype(np.float32)


def scenery(backdrop: Backdrop, camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Cut the photograph to the picture's size."""
    assert backdrop.patch is not None
    size = camera.width, camera.height
    crop = backdrop.patch.cut(backdrop.zoom * np.array([1, camera.width / camera.height]))
    return np.asarray(crop.resize(size, PIL.Image.Resampling.BICUBIC), np.float32)


def _shadow(camera: Camera, feet: np.ndarray) -> np.ndarray:
    """Return the factors by which the shadow darkens, (height, width)."""
    y, x = (np.arange(n, dtype=np.float32) for n in (camera.height, camera.width))
    light = np.ones((camera.height, camera.width), np.float32)
    for foot in feet:
        across, down = camera.project(foot * (1, 0, 1))
        strength = SHADOW * np.exp(-max(0.0, foot[1] - 0.05) / 0.1)  # less from a raised foot
        column = np.exp(-(((x - across) / (SHADOW_SIZE[1] * camera.scale)) ** 2))
        row = np.exp(-(((y - down) / (SHADOW_SIZE[0] * camera.scale)) ** 2))
        light *= 1 - strength * row[:, None] * column
    return light
