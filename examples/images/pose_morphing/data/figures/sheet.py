"""One picture of many figures: a row for each identity, with its key points and true matches."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import tyro

from examples.images.pose_morphing.data.figures.render import draw_figure
from examples.images.pose_morphing.data.figures.skeleton import LIMBS


def draw_limbs(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The picture with its skeleton; key points that are not seen are grey."""
    picture = PIL.Image.fromarray(image)
    canvas = PIL.ImageDraw.Draw(picture)
    size = max(1, len(image) // 128)
    for first, second in LIMBS:
        if (points[[first, second], 0] >= 0).all():
            canvas.line((*points[first, :2], *points[second, :2]), (40, 90, 220), size)
    for x, y, seen in points.tolist():
        if x >= 0:
            box = x - size, y - size, x + size, y + size
            canvas.ellipse(box, (220, 30, 30) if seen else (120, 120, 120))
    return np.asarray(picture)


def sheet(identities: range, poses: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rows = []
    for identity in identities:
        figures = [draw_figure(identity, pose, shape, seed) for pose in range(poses)]
        first = draw_limbs(figures[0].image, figures[0].points)
        rows.append(np.concatenate([*(figure.image for figure in figures), first], axis=1))
    return np.concatenate(rows)


def main(
    out: Path,
    size: tuple[int, int] = (256, 256),
    identities: int = 5,
    poses: int = 6,
    first: int = 0,
    seed: int = 0,
) -> None:
    """Write a sheet."""
    PIL.Image.fromarray(sheet(range(first, first + identities), poses, size, seed)).save(out)


if __name__ == "__main__":
    tyro.cli(main)
