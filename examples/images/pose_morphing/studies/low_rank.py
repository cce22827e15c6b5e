"""Why low-rank attention does not copy: its error on the attention that the shipped network learnt.

    python -m examples.images.pose_morphing.studies.low_rank

Queries and keys are those of the trained network at its two finest levels, values are the pixels
of the source, and the error is that against full attention of the same affinity, over the
deviation of its output: 1 is what the mean of all pixels has. Writes low_rank.json and low_rank.md.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from examples.common.commands import command
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing import figures
from examples.images.pose_morphing.config import parse
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.measures.tasks import pair_task
from examples.images.pose_morphing.trained import load_trained
from ndgpa import Full

RANKS = (32, 128, 512)
LEVELS = 2  # the finest, which select
PAIRS = 4


@dataclass(frozen=True)
class Options:
    """Measure the errors."""

    out: Path = figures.HERE / "results"
    people: Path = Path("runs/figures_of_the_paper")  # where people are drawn first


def main(options: Options) -> None:
    """Measure every attention at every level."""
    check_folder(options.out)
    task = pair_task(figures.people(figures.Options((), people=options.people)), PAIRS, seed=7)
    batch = task.batch
    with torch.no_grad():
        morph = load_trained(figures.GPA).generator(
            batch.source, batch.source_maps, batch.target_maps
        )
        found = {
            f"{level.size[0]}x{level.size[1]}": errors(level, batch.source)
            for level in morph.levels[:LEVELS]
        }
    write_json(options.out / "low_rank.json", {"machine": machine(), "errors": found})
    names = next(iter(found.values()))
    rows = [[name, *(f"{of[name]:.3f}" for of in found.values())] for name in names]
    table = markdown_table(["error", *found], rows)
    write_text(options.out / "low_rank.md", f"{__doc__}\n{table}\n")


def errors(level: Level, source: Float[Tensor, "b 3 h w"]) -> dict[str, float]:
    """Measure the error of each attention at a level."""
    width = level.query.shape[3]
    pixels = rearrange(F.adaptive_avg_pool2d(source, level.size), "b c h w -> b 1 (h w) c")
    asked = level.query, level.key, pixels, level.structure
    exact = Full(scale=1.0, affinity="euclidean")(*asked)
    spread = (exact - exact.mean(dim=2, keepdim=True)).norm()
    found = {"GPA": level.operator(*asked)}
    for kind in ("NYF", "PER"):
        for rank in RANKS:
            operator = parse(f"{kind}{rank}_1").operator(level.size, "euclidean", width)
            found[f"{kind}{rank}"] = operator(*asked)
    return {name: ((out - exact).norm() / spread).item() for name, out in found.items()}


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
