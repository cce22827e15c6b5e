"""Distances along a surface, learned with message passing alone, GPA and dense attention.

    python -m examples.graphs.mesh.train            # minutes on two cores
    python -m examples.graphs.mesh.train --smoke    # seconds; the numbers mean nothing

Writes a table and a picture of what GPA reads to OUT, checkpoints and TensorBoard curves to
OUT/runs. A run that was stopped continues where it was, and a finished one can be extended by more
steps. `--attentions` takes other attentions, such as "GPA(16, far=block)".
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from examples.common.commands import check_count, command
from examples.graphs.compare import Options, check, compare
from examples.graphs.mesh.data import Distances
from examples.graphs.mesh.picture import draw
from examples.graphs.model import NAMES, first_gpa
from examples.graphs.report import write


def main(
    out: Path = Path("runs/mesh"),
    steps: int = 800,
    batch: int = 4,
    rate: float = 3e-3,
    surfaces: int = 48,
    tests: int = 8,
    resolution: int = 28,
    seeds: tuple[int, ...] = (0, 1, 2),
    attentions: tuple[str, ...] = tuple(NAMES),
    read_by: tuple[str, ...] = (),
    validate: bool = False,
    threads: int = 0,
    smoke: bool = False,
) -> None:
    """Train a network with each attention and compare them.

    Args:
        out: Where the table and the picture go.
        steps: Training steps of each network.
        batch: Surfaces of a step.
        rate: Learning rate.
        surfaces: Surfaces to train on.
        tests: Surfaces to test on.
        resolution: Samples of the volume along an axis.
        seeds: Each is a network and an order of the problems.
        attentions: "message passing", gpa, dense, or calls such as "GPA(16, far=block)".
        read_by: Such attentions too; each also reads in the place of the one trained with.
        validate: Test on other surfaces, to choose options on.
        threads: Of the processor; 0 for as many as torch takes.
        smoke: A run of seconds, in a folder `smoke` of `out`.
    """
    if smoke:
        out /= "smoke"
        steps, surfaces, tests, resolution, seeds = 2, 2, 1, 20, (0,)
    options = Options(steps, batch, rate, seeds, attentions, read_by)
    check(options, threads, out)
    check_count("--surfaces", surfaces, most=10_000)
    check_count("--tests", tests, most=1000)
    check_count("--resolution", resolution, 16, 256)
    task = Distances(surfaces, tests, resolution, validate)
    rows, networks = compare(task, options, out / "runs")
    sites = [len(s.position) for s in task.test_surfaces]
    about = (
        "Distance along a surface from a marked vertex: mean error over mean distance, on "
        f"{tests} surfaces of {min(sites)} to {max(sites)} vertices that were not trained on"
        f"{' (for validation)' if validate else ''}; {steps} steps of {batch} on {surfaces} "
        f"others. Errors: mean, lowest and highest of {len(seeds)} seeds. Time and memory are of "
        "training on one surface, once."
    )
    tqdm.write(write(out, "mesh", about, rows))
    if first_gpa(networks):
        draw(out / "mesh.png", task, networks)


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
