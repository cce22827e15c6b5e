"""Regions of the colour of a marked place: message passing alone, GPA and dense attention.

    python -m examples.graphs.superpixels.train            # minutes on two cores
    python -m examples.graphs.superpixels.train --smoke    # seconds; the numbers mean nothing

Writes a table and a picture to OUT. In runs of 600 steps none of the three learned the task: all
stay near the 33 % of choosing nothing. It is kept as a start, not as a result.
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from examples.graphs.compare import Options, compare, write
from examples.graphs.superpixels.data import Segmentation
from examples.graphs.superpixels.picture import draw


def main(
    out: Path = Path("runs/superpixels"),
    steps: int = 600,
    rate: float = 3e-3,
    collages: int = 64,
    tests: int = 8,
    tiles: int = 4,
    tile: int = 40,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train three networks and compare them.

    Args:
        out: Where the table and the picture go.
        steps: Training steps of each network, one collage each.
        rate: Learning rate.
        collages: Collages to train on.
        tests: Collages to test on.
        tiles: Tiles along the side of a collage.
        tile: Pixels along the side of a tile.
        seed: Of the networks and the order of the problems.
        smoke: A run of seconds.
    """
    if smoke:
        steps, collages, tests, tiles, tile = 2, 2, 1, 2, 40
    task = Segmentation(collages, tests, tiles, tile)
    rows, networks = compare(task, Options(steps, rate, seed))
    sites = [len(c.features) for c in task.test_collages]
    about = (
        "Which third of a picture's superpixels is nearest in colour to a marked place: those "
        f"that are wrong (33 % if none is chosen), on {tests} collages of {min(sites)} to "
        f"{max(sites)} superpixels from parts of photographs that were not trained on; {steps} "
        f"steps on {collages} others. Time and memory are of one training step."
    )
    tqdm.write(write(out, "superpixels", about, rows))
    draw(out / "superpixels.png", task, networks)


if __name__ == "__main__":
    tyro.cli(main)
