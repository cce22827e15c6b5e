"""Segmentation from a few marks, learned with message passing alone, GPA and dense attention.

    python -m examples.graphs.superpixels.train            # minutes on two cores
    python -m examples.graphs.superpixels.train --smoke    # seconds; the numbers mean nothing

Writes a table and a picture to OUT.
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from examples.graphs.compare import Options, compare, write
from examples.graphs.superpixels.data import MARKS, Segmentation
from examples.graphs.superpixels.picture import draw


def main(
    out: Path = Path("runs/superpixels"),
    steps: int = 500,
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
    sites = [len(c.label) for c in task.test_collages]
    about = (
        f"Which of three photographs is a superpixel from, given {MARKS} marked superpixels of "
        f"each: superpixels that are wrong, on {tests} collages of {min(sites)} to {max(sites)} "
        f"superpixels from parts of the photographs that were not trained on; {steps} steps on "
        f"{collages} others. Time and memory are of one training step."
    )
    tqdm.write(write(out, "superpixels", about, rows))
    draw(out / "superpixels.png", task, networks)


if __name__ == "__main__":
    tyro.cli(main)
