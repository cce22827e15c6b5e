"""How much faster than dense attention is GPA on a CPU, and how far from the least work?

    python benchmarks/cpu_speed.py [--quick]

One head of 64 channels, float32, blocks of 16 sites, cells of 4 blocks, kappa 12 (on 256x256 that
is the paper's pivot). Dense attention is `scaled_dot_product_attention`, timed once for each n, as
it does not depend on the space. FlexAttention is compiled and reads the same blocks, its inputs
already laid out block by block, its selection not in the time; it has no backward on a CPU.

Columns: `*_ms` medians in milliseconds, `fb` forward and backward; `select_ms` Phase 1 alone;
`dense/gpa` how many times faster GPA is; `least_ms` the time that its products and its reads and
writes take at the machine's own measured rates; `of_least` time over least time.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import Limits, limits, median_seconds, write
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from tqdm import tqdm

import ndgpa

CHANNELS, KEPT = 64, 12
DENSE_UP_TO = 65_536
SPACES: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, ...]]]] = {
    "1-d": ((16,), (4,), [(4096,), (16384,), (65536,), (262144,)]),
    "2-d": ((4, 4), (2, 2), [(64, 64), (128, 128), (256, 256), (512, 512)]),
    "3-d": ((2, 2, 4), (1, 2, 2), [(16, 16, 16), (16, 32, 32), (16, 64, 64), (64, 64, 64)]),
}


def main(quick: bool) -> None:
    torch.manual_seed(0)
    rates = limits()
    dense: dict[int, tuple[float, float]] = {}
    rows = []
    cases = [
        (name, shape, block, cell)
        for name, (block, cell, shapes) in SPACES.items()
        for shape in (shapes[:1] if quick else shapes)
    ]
    for name, shape, block, cell in tqdm(cases, desc="cpu_speed"):
        n = math.prod(shape)
        if n not in dense and n <= DENSE_UP_TO:
            dense[n] = dense_seconds(n)
        rows.append(row(name, ndgpa.Grid(shape, block, cell), dense.get(n), rates))
    about = {"flops_per_s": rates.flops, "copy_bytes_per_s": rates.bytes, "kappa": KEPT, "seed": 0}
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("cpu_speed", question, rows, **about)
    for line in rows:
        print(line)


def row(
    name: str, grid: ndgpa.Grid, dense: tuple[float, float] | None, rates: Limits
) -> dict[str, Any]:
    inputs = features(grid.num_sites)
    with torch.no_grad():
        selection = ndgpa.select(*inputs[:2], grid, KEPT)
        select = median_seconds(lambda: ndgpa.select(*inputs[:2], grid, KEPT))
        forward = median_seconds(lambda: ndgpa.gpa(*inputs, grid, KEPT))
        flex = flex_seconds(inputs, selection, grid)
    both = median_seconds(lambda: forward_backward(lambda *x: ndgpa.gpa(*x, grid, KEPT), inputs))
    least = least_seconds(grid, rates, backward=False)
    least_both = least_seconds(grid, rates, backward=True)
    return {
        "space": name,
        "shape": "x".join(map(str, grid.shape)),
        "n": grid.num_sites,
        "gpa_ms": 1e3 * forward,
        "select_ms": 1e3 * select,
        "flex_ms": None if flex is None else 1e3 * flex,
        "dense_ms": None if dense is None else 1e3 * dense[0],
        "dense/gpa": None if dense is None else dense[0] / forward,
        "least_ms": 1e3 * least,
        "of_least": forward / least,
        "gpa_fb_ms": 1e3 * both,
        "dense_fb_ms": None if dense is None else 1e3 * dense[1],
        "dense_fb/gpa_fb": None if dense is None else dense[1] / both,
        "least_fb_ms": 1e3 * least_both,
        "of_least_fb": both / least_both,
    }


def features(n: int) -> list[Tensor]:
    return [torch.randn(1, 1, n, CHANNELS, requires_grad=True) for _ in range(3)]


def forward_backward(attention: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    out = attention(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def dense_seconds(n: int) -> tuple[float, float]:
    inputs = features(n)
    with torch.no_grad():
        forward = median_seconds(lambda: F.scaled_dot_product_attention(*inputs))
    return forward, median_seconds(lambda: forward_backward(F.scaled_dot_product_attention, inputs))


def flex_seconds(
    inputs: list[Tensor], selection: ndgpa.Selection, grid: ndgpa.Grid
) -> float | None:
    """FlexAttention over the same blocks; None where it does not compile here."""
    count = torch.full(selection.blocks.shape[:3], KEPT, dtype=torch.int32)
    ids = selection.blocks.new_zeros(*selection.blocks.shape[:3], grid.num_blocks)
    ids[..., :KEPT] = selection.blocks
    tile = grid.sites_per_block * grid.blocks_per_cell
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(count),
        torch.zeros_like(ids),
        count,
        ids,
        BLOCK_SIZE=(tile, grid.sites_per_block),
    )
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True)
    query = grid.partition(inputs[0].detach()).flatten(2, 3)
    key, value = (grid.by_block(x.detach()).flatten(2, 3) for x in inputs[1:])
    try:
        out = compiled(query, key, value, block_mask=mask)
    except Exception as error:  # a compiler's own errors are of any type
        tqdm.write(f"FlexAttention did not run at {grid.shape}: {str(error).splitlines()[0]}")
        return None
    ours = ndgpa.attend(*(x.detach() for x in inputs), selection, grid)
    theirs = grid.compose(out.unflatten(2, (grid.num_cells, tile)))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    return median_seconds(lambda: compiled(query, key, value, block_mask=mask))


def least_seconds(grid: ndgpa.Grid, rates: Limits, backward: bool) -> float:
    """Both phases' products (2.5 times Phase 2's more in the backward), each tensor once."""
    pairs = grid.num_sites * KEPT * grid.sites_per_block
    phase_1 = 2 * grid.num_blocks**2 * CHANNELS
    phase_2 = 4 * pairs * CHANNELS
    traffic = 4 * grid.num_sites * CHANNELS * 4
    if not backward:
        return rates.least_seconds(phase_1 + phase_2, traffic)
    return rates.least_seconds(phase_1 + 3.5 * phase_2, 3 * traffic)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, no result file")
    main(parser.parse_args().quick)
