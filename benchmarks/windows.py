"""How fast is a fixed window beside FlexAttention on a CPU, for the same windows?

    python benchmarks/windows.py [--quick]

Each cell reads the blocks within `radius` of it, 2 heads of 64 channels, float32, forward alone:
FlexAttention has no backward on a CPU. "ndgpa" is `ndgpa.gpa` with the rule `Window`, on features
in raster order; "flex" is compiled `flex_attention` with a `BlockMask` of the same blocks, on
features that lie in the order of the blocks already, which it needs and which is not timed; "dense"
is `scaled_dot_product_attention`. They take turns, in one process on one thread, and seconds are of
the processor, as the machine is shared. NATTEN, whose `flex-fna` is FlexAttention too, has no wheel
for this platform on the package registry.

Columns: `space`; `block`, `cell`, `radius` of the window; `keys` read by an inner query; `*_ms`
median milliseconds a call; `flex/ndgpa`, `dense/ndgpa` how many times faster ndgpa is; `difference`
the largest between the outputs of flex and ndgpa.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from tqdm import tqdm

import ndgpa

HEADS, CHANNELS, REPEATS = 2, 64, 9


@dataclass(frozen=True)
class Case:
    """A grid and its windows."""

    shape: tuple[int, ...]
    block: int
    cell: int
    radius: int

    @property
    def space(self) -> ndgpa.structures.Grid:
        return ndgpa.Grid(self.shape, self.block, self.cell)


CASES = [
    Case((4096,), block=16, cell=4, radius=4),
    Case((16384,), block=16, cell=4, radius=4),
    Case((64, 64), block=4, cell=2, radius=1),
    Case((128, 128), block=4, cell=2, radius=1),
]


def block_mask(space: ndgpa.structures.Grid, radius: int) -> BlockMask:
    """The windows as FlexAttention has them, on sites in the order of the cells."""
    order = space.cells.flatten()  # place in the order -> block
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    blocks = space.near_cells(radius)
    count = (blocks >= 0).sum(dim=1).int()[None, None]
    ids = torch.where(blocks < 0, space.num_blocks, place[blocks.clamp(min=0)])
    ids = ids.sort(dim=1).values
    ids = torch.where(ids == space.num_blocks, 0, ids)
    ids = F.pad(ids, (0, space.num_blocks - ids.shape[1])).int()[None, None]
    size = (space.blocks_per_cell * space.sites_per_block, space.sites_per_block)
    partial = torch.zeros_like(count), torch.zeros_like(ids)
    return BlockMask.from_kv_blocks(*partial, count, ids, BLOCK_SIZE=size)


def row(case: Case) -> dict[str, Any]:
    space = case.space
    features = [torch.randn(1, HEADS, space.num_sites, CHANNELS) for _ in range(3)]
    by_cell = [space.partition(x).flatten(2, 3).contiguous() for x in features]
    mask, rule = block_mask(space, case.radius), ndgpa.Window(case.radius)
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    runs: dict[str, Callable[[], Tensor]] = {
        "flex": lambda: compiled(*by_cell, block_mask=mask),
        "ndgpa": lambda: ndgpa.gpa(*features, space, rule),
        "dense": lambda: F.scaled_dot_product_attention(*features),
    }
    outs = {name: run() for name, run in runs.items()}
    flex = space.compose(outs["flex"].unflatten(2, (space.num_cells, -1)))
    ms = {name: 1e3 * value for name, value in in_turns(runs).items()}
    return {
        "space": "x".join(map(str, case.shape)),
        "block": case.block,
        "cell": case.cell,
        "radius": case.radius,
        "keys": int((space.near_cells(case.radius) >= 0).sum(1).max()) * space.sites_per_block,
        **{f"{name}_ms": value for name, value in ms.items()},
        "flex/ndgpa": ms["flex"] / ms["ndgpa"],
        "dense/ndgpa": ms["dense"] / ms["ndgpa"],
        "difference": (flex - outs["ndgpa"]).abs().max().item(),
    }


def in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of processor time of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return {name: median(times) for name, times in seconds.items()}


@torch.no_grad()
def main(quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [row(case) for case in tqdm(CASES[:1] if quick else CASES, desc="windows")]
    for line in rows:
        print(line)
    if not quick:
        note = "the machine was shared by others; seconds are of the processor"
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("windows", question, rows, heads=HEADS, channels=CHANNELS, seed=0, note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest size, no result file")
    main(parser.parse_args().quick)
