"""How many readers do neighbouring key blocks share? (Would one program for several pay?)

    PYTHONPATH=. python benchmarks/readers.py

Selections of `TopK(12)` at the paper's pivot (256x256 sites, blocks 4x4, cells of 2x2 blocks) on
features of photographs. Columns: how many neighbouring key blocks a program would hold, in which
shape; readers of their union over the sum of their readers: the share of query rows that are still
loaded, and the products over those of one block a program.
"""

import levels
import torch

import ndgpa

SIDE, BLOCK, CELL, KEPT = 256, 4, 2, 12
GROUPS = {"1x2": (1, 2), "2x2": (2, 2), "1x4": (1, 4), "4x4": (4, 4)}


def shares(blocks: torch.Tensor, side: int, group: tuple[int, int]) -> tuple[float, float]:
    """Rows that are loaded, and products, over those of one block a program.

    Args:
        blocks: (cells, kept) ids of key blocks on a grid of `side` by `side`.
    """
    y, x = blocks // side, blocks % side
    of_group = y // group[0] * side + x // group[1]
    cell = torch.arange(len(blocks))[:, None]
    pairs = (cell * side * side + of_group).unique().numel()
    return pairs / blocks.numel(), pairs * group[0] * group[1] / blocks.numel()


def main() -> None:
    space = ndgpa.Image((SIDE, SIDE), BLOCK, CELL)
    print("| features | group | rows loaded | products |\n|---|---|---|---|")
    for sharpness in (1.0, 4.0):
        x = levels.features(SIDE) * sharpness
        blocks = ndgpa.select(x, x, space, KEPT).blocks[0, 0].long()
        for name, group in GROUPS.items():
            rows, products = shares(blocks, SIDE // BLOCK, group)
            print(f"| photographs, times {sharpness:g} | {name} | {rows:.2f} | {products:.2f} |")


if __name__ == "__main__":
    main()
