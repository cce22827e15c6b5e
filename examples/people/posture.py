"""Whether key points can be those of a person in a picture."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from examples.people.keypoints import NAMES

Points = Float[np.ndarray, "N 18 3"]
LEAST_POINTS = 4  # of a person, below which a picture is left out
SMALLEST = 2.0  # pixels; nobody with all points below is in pixels
LARGEST = 65_536  # pixels
SLACK = 0.1  # of the picture's size
LEAST_PEOPLE = 8  # below which nothing is said of them as a whole


def peopled(points: Float[np.ndarray, "N 18 3"]) -> np.ndarray:
    """Tell in which pictures enough of a person is seen."""
    return points[..., 2].sum(-1) >= LEAST_POINTS


def oddities(points: Points) -> Iterator[str]:
    """Write a sentence for each oddity that most people show, though few should."""
    lying = lies(points)
    if len(lying) >= LEAST_PEOPLE and lying.mean() > 0.5:
        yield f"{lying.sum()} of {len(lying)} people lie on their side: x and y look swapped"
    crossed = _crossed(points)
    if len(crossed) >= LEAST_PEOPLE and crossed.mean() > 0.5:
        yield (
            f"{crossed.sum()} of {len(crossed)} people have the right eye on the side of the left "
            "shoulder: the order should be reye, leye, rear, lear"
        )


def lies(points: Points) -> np.ndarray:
    """Tell whose neck and hip, if both are seen, are further apart in x than in y."""
    seen = points[_there(points, "neck", "rhip")]
    across, down = np.abs(_at(seen, "rhip") - _at(seen, "neck")).T
    return across > down


def _crossed(points: Points) -> np.ndarray:  # of those with both eyes and both shoulders
    seen = points[_there(points, "reye", "leye", "rsho", "lsho")]
    eyes = _at(seen, "leye") - _at(seen, "reye")
    shoulders = _at(seen, "lsho") - _at(seen, "rsho")
    return eyes[:, 0] * shoulders[:, 0] < 0


def _there(points: Points, *names: str) -> np.ndarray:
    return (points[:, [NAMES.index(name) for name in names], 2] > 0).all(1)


def _at(points: Points, name: str) -> np.ndarray:
    return points[:, NAMES.index(name), :2]


def check_pixels(points: Points) -> None:
    """Refuse people whose points lie between 0 and 1, or beyond any possible picture.

    Raises:
        ValueError: Of the first such person.
    """
    there = points[..., 2] > 0
    largest = np.where(there[..., None], points[..., :2], 0).max((1, 2), initial=0)
    if (largest > LARGEST).any():
        raise ValueError(f"a key point is at {largest.max():g}; at most {LARGEST} pixels are read")
    if ((largest < SMALLEST) & (there.sum(1) >= LEAST_POINTS)).any():
        raise ValueError(
            "all key points lie between 0 and 1, as parts of the picture's size; expected pixels"
        )


def without_far(points: Points, image_sizes: Int[np.ndarray, "N 2"]) -> Points:
    """Count points far outside their picture as missing."""
    far = off_picture(points, image_sizes)[..., None]
    return np.where(far, np.float32([-1, -1, 0]), points)


def off_picture(points: Points, image_sizes: Int[np.ndarray, "N 2"]) -> np.ndarray:
    """Tell which points are outside their picture by more than a share of its size; (N, 18) bool.

    Detectors put points a little outside a picture where somebody is cut off by its edge.
    """
    h, w = (1 + SLACK) * image_sizes.T[..., None]
    x, y, there = np.moveaxis(points, -1, 0)
    return (there > 0) & ((x > w) | (y > h))


def far_points(points: Points, image_sizes: Int[np.ndarray, "N 2"]) -> dict[int, str]:
    """Write a sentence for each picture with a point far off it."""
    off = off_picture(points, image_sizes)
    return {
        int(i): _off_text(points[i], off[i].argmax(), image_sizes[i])
        for i in off.any(1).nonzero()[0]
    }


def _off_text(points: np.ndarray, which: int, image_size: np.ndarray) -> str:
    (x, y, _), (h, w) = points[which], image_size
    return f"{NAMES[which]} is at x {x:g}, y {y:g}, off the picture of {w}x{h}"
