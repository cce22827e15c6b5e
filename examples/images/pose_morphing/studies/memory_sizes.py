"""What one attention takes at 64, 128 and 256 pixels: measured, and counted as the paper counts.

    python -m examples.images.pose_morphing.studies.memory_sizes

Forward and backward of one picture, float32, on a CPU. GPA is the paper's pivot: blocks of 4x4
pixels, cells of 2x2 blocks, 12 key blocks each; the low-rank ones have the paper's ranks. Counted
are the entries of affinity matrices, at 4 bytes, as in section 2.2 of the paper. Writes
memory_sizes.json and memory_sizes.md.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from examples.common.commands import check_count, command
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.studies.memory import attention_bytes, level_entries
from ndgpa import GPA, Full, Image
from ndgpa.operators import Nystrom, Operator, Performer

BLOCK, CELL, KAPPA = 4, 2, 12  # of the pivot
RANKS = (512, 708, 768)  # of the paper
FULL_UNTIL = 64  # pixels: more take minutes on a CPU
ABOUT = """MB of forward and backward of one attention, measured, and in brackets as counted: the
entries of the affinity matrices at 4 bytes. Queries, keys and values of {width} features, one
picture, float32; machine: {machine}."""


@dataclass(frozen=True)
class Options:
    """Measure what attentions take."""

    sizes: tuple[int, ...] = (64, 128, 256)  # pixels along a side
    width: int = 160  # features
    out: Path = Path("examples/images/pose_morphing/results")


def main(options: Options) -> None:
    """Measure every attention at every size."""
    check_count("--width", options.width)
    check_folder(options.out)
    torch.set_num_threads(1)
    found = {
        name: {
            str(side): taken(operator, side, options.width)
            for side in options.sizes
            if side <= FULL_UNTIL or not isinstance(operator, Full)
        }
        for name, operator in operators(options.width).items()
    }
    said = {"machine": machine(), "width": options.width, "bytes": found}
    write_json(options.out / "memory_sizes.json", said)
    rows = [
        [name, *(cell(by_size.get(str(side))) for side in options.sizes)]
        for name, by_size in found.items()
    ]
    table = markdown_table(["", *(f"{side}x{side}" for side in options.sizes)], rows)
    about = ABOUT.format(width=options.width, machine=machine())
    write_text(options.out / "memory_sizes.md", f"{about}\n\n{table}\n")


def operators(width: int) -> dict[str, Operator]:
    """List the attentions by name."""
    found: dict[str, Operator] = {"GPA, the pivot": GPA(KAPPA), "full": Full()}
    found |= {f"Nystromformer {rank}": Nystrom(rank) for rank in RANKS}
    return found | {f"Performer {rank}": Performer(width, rank) for rank in RANKS}


def taken(operator: Operator, side: int, width: int) -> dict[str, int]:
    """Measure and count one attention, in bytes."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, side**2, width, generator=generator)
    copied = torch.zeros(1, 3, side, side)
    level = Level((side, side), copied, query, key, Image((side, side), BLOCK, CELL), operator)
    measured = attention_bytes(level, width)
    return {"measured": measured, "counted": 4 * level_entries(level)}


def cell(found: dict[str, int] | None) -> str:
    if found is None:
        return "-"
    return f"{found['measured'] / 1e6:.0f} ({found['counted'] / 1e6:.0f})"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
