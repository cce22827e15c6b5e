"""Distances along a surface, learned with message passing alone, GPA and dense attention.

    python -m examples.graphs.mesh.train            # minutes on two cores
    python -m examples.graphs.mesh.train --smoke    # seconds; the numbers mean nothing

Writes a table and a picture to OUT.
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from examples.graphs.compare import Options, compare, write
from examples.graphs.mesh.data import Distances
from examples.graphs.mesh.picture import draw


def main(
    out: Path = Path("runs/mesh"),
    steps: int = 500,
    rate: float = 3e-3,
    surfaces: int = 48,
    tests: int = 8,
    resolution: int = 36,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train three networks and compare them.

    Args:
        out: Where the table and the picture go.
        steps: Training steps of each network, one surface each.
        rate: Learning rate.
        surfaces: Surfaces to train on.
        tests: Surfaces to test on.
        resolution: Samples of the volume along an axis.
        seed: Of the networks and the order of the problems.
        smoke: A run of seconds.
    """
    if smoke:
        steps, surfaces, tests, resolution = 2, 2, 1, 20
    task = Distances(surfaces, tests, resolution)
    rows, networks = compare(task, Options(steps, rate, seed))
    sites = [len(s.position) for s in task.test_surfaces]
    about = (
        "Distance along a surface from a marked vertex: mean error over mean distance, on "
        f"{tests} surfaces of {min(sites)} to {max(sites)} vertices that were not trained on; "
        f"{steps} steps on {surfaces} others. Time and memory are of one training step."
    )
    tqdm.write(write(out, "mesh", about, rows))
    draw(out / "mesh.png", task, networks)


if __name__ == "__main__":
    tyro.cli(main)
