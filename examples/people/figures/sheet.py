"""One picture of many figures.

    python -m examples.people.figures.sheet --out sheet.png --size 512 256

A row for each identity: the poses, the first again with its key points, and the one with the most
similar turn put together from pixels of the first, wherever that shows the same point (else pale).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import tyro

from examples.common.commands import check_count, check_number, command
from examples.common.files import check_output, replacing
from examples.people.figures.correspondence import correspondence
from examples.people.figures.render import Figure, draw_figure
from examples.people.keypoints import draw_skeleton
from examples.people.variety import draw_conditions


def row(
    identity: int, poses: int, size: tuple[int, int], seed: int, photos: float, variety: bool
) -> np.ndarray:
    """(h, w (poses + 2), 3) of uint8."""
    figures = [draw_figure(identity, pose, size, seed, photos) for pose in range(poses)]
    if variety:
        conditions = draw_conditions(np.random.default_rng([23, seed, identity]))
        figures = [replace(figure, image=conditions.seen(figure.image)) for figure in figures]
    first, *others = figures
    nearest = max(others, key=lambda other: np.cos(other.yaw - first.yaw))
    skeleton = draw_skeleton(first.image, first.points)
    pictures = [*(figure.image for figure in figures), skeleton, copied(first, nearest)]
    return np.concatenate(pictures, axis=1)


def copied(source: Figure, target: Figure) -> np.ndarray:
    """The target in pixels of the source; pale where those do not show it."""
    match = correspondence(source.part, source.local, target.part, target.local)
    picture = 255 - (255 - target.image) // 4
    picture[match.copyable] = source.image[match.row, match.column][match.copyable]
    return picture


def main(
    out: Path,
    size: tuple[int, int] = (256, 256),
    identities: int = 5,
    poses: int = 6,
    first: int = 0,
    seed: int = 0,
    photos: float = 0.0,
    variety: bool = False,
) -> None:
    """Write a sheet.

    Args:
        out: Where to.
        size: Rows and columns of each picture.
        identities: How many.
        poses: Of each, at least 2.
        first: The number of the first identity.
        seed: Other seeds are other people.
        photos: The share of the cloths and of the backdrops that are patches of photographs.
        variety: Each person under other light, sharpness and compression.
    """
    check_output(out)
    check_number("--photos", photos, 0.0, 1.0)
    check_count("--identities", identities, 1, 1000)
    check_count("--poses", poses, 2, 1000)
    check_count("--first", first, 0)
    check_count("--seed", seed, 0, 2**32 - 1)
    people = range(first, first + identities)
    pixels = np.concatenate(
        [row(identity, poses, size, seed, photos, variety) for identity in people]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        PIL.Image.fromarray(pixels).save(part, format=out.suffix.lstrip(".") or "png")
    print(f"wrote {out}")


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
