"""How many rows do neighbours share? (Would one program for several blocks, or cells, pay?)

    PYTHONPATH=. python benchmarks/readers.py

Selections on features of photographs, and of a pan over them, and random ones (`gpu_cases`), one
head of each case. Writes results/readers.json and .md. Columns: `together` how many neighbouring
key blocks (key-major) or cells (forward) a program would hold, in which shape; `rows` that are
loaded for their union over those of one by one; `products` of all with the union over those of one
by one.
"""

from dataclasses import replace
from math import prod
from typing import Any

import measure
import torch
from gpu_cases import CASES, features
from torch import Tensor

import ndgpa

BLOCKS = ((1, 2), (2, 2), (1, 4), (4, 4))
# Blocks and cells of a case along each axis.
GRIDS = {"pivot 64": ((64, 64), (32, 32)), "video 49,152": ((12, 8, 8), (12, 8, 8))}
CELLS = ((1, 1, 2), (2, 1, 1), (1, 2, 2), (4, 1, 1), (2, 2, 2))


def groups(shape: tuple[int, ...], group: tuple[int, ...]) -> Tensor:
    """The number of the group of each element, in raster order; groups are as a grid's blocks."""
    return ndgpa.Grid(shape, group).block_of_site


def shares(blocks: Tensor, of_cell: Tensor, of_block: Tensor) -> tuple[float, float]:
    """Rows that are loaded, and products, over those of one block or cell a program.

    Args:
        blocks: (cells, kept) ids of key blocks.
        of_cell, of_block: The group of each cell and of each block.
    """
    pairs = (of_cell[:, None] * len(of_block) + of_block[blocks]).unique().numel()
    size = len(of_cell) * len(of_block) / (int(of_cell.max()) + 1) / (int(of_block.max()) + 1)
    return pairs / blocks.numel(), pairs * size / blocks.numel()


def selection(name: str, lists: str) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """The blocks of one head, and how many blocks and cells there are along each axis."""
    case = replace(next(c for c in CASES if c.name == name), batch=1, heads=1, dtype=torch.float32)
    space = case.space()
    key = features(case, space, lists, torch.device("cpu"))
    query = key if lists != "random" else features(case, space, lists, torch.device("cpu"), 1)
    found = ndgpa.select(query, key, space, case.kept).blocks[0, 0].long()
    return found, *GRIDS[name]


def rows() -> list[dict[str, Any]]:
    """Blocks at the pivot, cells at the 64-site video shape."""
    found = []
    for name, together in (("pivot 64", BLOCKS), ("video 49,152", CELLS)):
        for lists in ("photographs", "random"):
            selected, blocks, cells = selection(name, lists)
            one_block, one_cell = torch.arange(prod(blocks)), torch.arange(len(selected))
            for group in together:
                of_cells = len(group) == 3
                of_cell = groups(cells, group) if of_cells else one_cell
                of_block = one_block if of_cells else groups(blocks, group)
                loaded, products = shares(selected, of_cell, of_block)
                shape = "x".join(map(str, group)) + (" cells" if of_cells else " blocks")
                found.append(
                    {
                        "case": name,
                        "lists": lists,
                        "together": shape,
                        "rows": loaded,
                        "products": products,
                    }
                )
    return found


def main() -> None:
    measure.write("readers", __doc__.splitlines()[0], rows())
    print((measure.RESULTS / "readers.md").read_text())


if __name__ == "__main__":
    main()
