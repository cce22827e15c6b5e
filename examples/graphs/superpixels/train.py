"""What is lighter than a clicked region? message passing alone, GPA and dense attention.

    python -m examples.graphs.superpixels.train            # minutes on two cores
    python -m examples.graphs.superpixels.train --smoke    # seconds; the numbers mean nothing

Writes a table and a picture of what GPA reads to OUT, checkpoints and TensorBoard curves to
OUT/runs. A run that was stopped continues where it was, and a finished one can be extended by more
steps. `--attentions` takes other attentions, such as "GPA(16, far=block)".
"""

from pathlib import Path

import tyro
from tqdm import tqdm

from examples.common.commands import check_count, command
from examples.graphs.compare import Options, check, compare
from examples.graphs.model import NAMES, first_gpa
from examples.graphs.report import write
from examples.graphs.superpixels.data import PHOTOS, Clicks
from examples.graphs.superpixels.picture import draw


def main(
    out: Path = Path("runs/superpixels"),
    steps: int = 800,
    batch: int = 1,
    rate: float = 3e-3,
    views: int = 4,
    test_views: int = 8,
    size: int = 360,
    regions: int = 3000,
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
        batch: Views of photographs of a step.
        rate: Learning rate.
        views: Of each photograph to train on.
        test_views: Of each photograph to test on.
        size: Pixels along a side of a view.
        regions: About how many regions a view has.
        seeds: Each is a network and an order of the problems.
        attentions: "message passing", gpa, dense, or calls such as "GPA(16, far=block)".
        read_by: Such attentions too; each also reads in the place of the one trained with.
        validate: Test on other photographs, to choose options on.
        threads: Of the processor; 0 for as many as torch takes.
        smoke: A run of seconds, in a folder `smoke` of `out`.
    """
    if smoke:
        out /= "smoke"
        steps, views, test_views, size, regions, seeds = 2, 1, 1, 64, 100, (0,)
    options = Options(steps, batch, rate, seeds, attentions, read_by)
    check(options, threads, out)
    check_count("--views", views, most=1000)
    check_count("--test-views", test_views, most=1000)
    check_count("--size", size, 32, 4096)
    check_count("--regions", regions, 16, size**2 // 4)
    task = Clicks(views, test_views, size, regions, validate)
    rows, networks = compare(task, options, out / "runs")
    sites = [len(view.colour) for view in task.testing]
    about = (
        "Which regions of a photograph are lighter than a few clicked ones: the share of wrong "
        f"answers, on {len(task.tests)} problems on {len(task.testing)} views of {min(sites)} to "
        f"{max(sites)} regions of photographs that were not trained on"
        f"{' (for validation)' if validate else ''}; {steps} steps of {batch} on "
        f"{views * len(PHOTOS)} views of others. Errors: mean, lowest and highest of {len(seeds)} "
        "seeds. Time and memory are of training on one view, once."
    )
    tqdm.write(write(out, "superpixels", about, rows))
    if first_gpa(networks):
        draw(out / "superpixels.png", task, networks)


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
