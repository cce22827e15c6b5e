"""Conditions that photographs are taken under: light, colour, sharpness, compression.

Pictures of one person are seen under the same conditions, and nothing moves: what is known of where
a pixel comes from stays true.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import scipy.ndimage
import torch
from jaxtyping import UInt8

from examples.people.pictures import People

EXPOSURE = 0.25  # the most that the light is brighter or darker, in natural logarithm
CAST = 0.12  # that of each channel, on top
CONTRAST = 0.25  # that of the exponent of the tone curve
GRADIENT = 0.35  # and half of how much lighter one side is than the other
SHARP = 0.5  # share of the pictures that are not blurred
BLUR = 0.9, 128.0  # the largest sigma in pixels, in a picture of so many rows
QUALITY = 35, 95  # of JPEG


@dataclass(frozen=True)
class Conditions:
    """What one person is seen under.

    Args:
        gain: Factors of red, green and blue.
        contrast: Exponent of the tone curve.
        gradient: Natural logarithm of how much lighter the bottom is than the middle, and the
            right side.
        blur: Sigma in picture heights.
        quality: Of JPEG, 1 to 95.
    """

    gain: tuple[float, float, float]
    contrast: float
    gradient: tuple[float, float]
    blur: float
    quality: int

    def seen(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return what the picture looks like."""
        h, w, _ = image.shape
        down, across = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
        light = np.exp(self.gradient[0] * down + self.gradient[1] * across)[..., None]
        lit = 255 * (image / 255) ** self.contrast * light * self.gain
        blurred = scipy.ndimage.gaussian_filter(lit, (self.blur * h, self.blur * h, 0))
        return compressed(blurred.clip(0, 255).round().astype(np.uint8), self.quality)


def compressed(image: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    """Compress as JPEG, and read that again."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "jpeg", quality=quality)
    return np.asarray(PIL.Image.open(file))


def draw_conditions(generator: np.random.Generator) -> Conditions:
    """Draw random conditions."""
    exposure = generator.uniform(-EXPOSURE, EXPOSURE)
    red, green, blue = np.exp(exposure + generator.uniform(-CAST, CAST, 3)).tolist()
    down, across = generator.uniform(-GRADIENT, GRADIENT, 2).tolist()
    largest, rows = BLUR
    blurred = generator.random() >= SHARP
    return Conditions(
        gain=(red, green, blue),
        contrast=float(np.exp(generator.uniform(-CONTRAST, CONTRAST))),
        gradient=(down, across),
        blur=blurred * generator.uniform(0, largest) / rows,
        quality=int(generator.integers(*QUALITY, endpoint=True)),
    )


def under_conditions(groups: Sequence[People], share: float) -> list[People]:
    """Show a share of the people under other conditions, drawn from torch's own generator.

    Args:
        groups: The same people in each, such as sources and targets: one is seen as the other.
        share: From 0, which changes nothing and draws nothing, to 1.
    """
    if not share:
        return list(groups)
    count = len(groups[0].images)
    seeds = torch.randint(2**31, (count,)).tolist()
    drawn = [draw_conditions(np.random.default_rng(seed)) for seed in seeds]
    chosen = (torch.rand(count) < share).tolist()
    return [
        People(
            np.stack(
                [
                    conditions.seen(image) if varies else image
                    for image, conditions, varies in zip(images, drawn, chosen, strict=True)
                ]
            ),
            points,
        )
        for images, points in groups
    ]
