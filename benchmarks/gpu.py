"""How fast is GPA on this GPU beside dense attention and its peers, and how far from the limit?

    python benchmarks/gpu.py [--peers DIR] [--only NAME ...] [--tiles]
    python benchmarks/gpu.py --tiny     the same program on the CPU; its numbers mean nothing

All contenders of a case run in one process on the same inputs and, where they take one, the same
selection. "gpa" selects and attends; "attend" and its rivals are given the selection. Dense
attention is `scaled_dot_product_attention`, by each of its backends that takes the inputs.
FlexAttention is compiled and given the same block lists, its inputs laid out block by block
beforehand. `--peers DIR` names a folder that holds the Python package `fastvideo_kernel` (VSA; its
Triton kernel is called, on inputs laid out beforehand). `--tiles` times every tile that compiles,
for whoever tunes `ndgpa/attention/triton/tiles.py`.

Writes results/GPU.json and results/GPU.md. Columns: `ms` median of repeats; `least_ms` the larger
of the least operations over the measured matrix product rate and the least bytes over the measured
copy rate; `of_least` time over least time; `tflops` operations on selected pairs over time;
`memory` peak allocation over that of inputs, outputs and gradients; `error` largest difference
from the `torch` backend, over the largest output (of "select": share of ids that differ from those
of "select").
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import measure
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from tqdm import tqdm

import ndgpa

DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    space: Callable[[], ndgpa.SpatialStructure]
    batch: int
    heads: int
    width: int
    kept: int
    dtype: torch.dtype = torch.bfloat16
    dense: bool = True


def graph(nodes: int, per_block: int, per_cell: int) -> ndgpa.Clusters:
    """A partition of a graph as a clustering program would give it: nodes in no order."""
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    block_of_node = torch.empty_like(order)
    block_of_node[order] = torch.arange(nodes) // per_block
    blocks = -(-nodes // per_block)
    return ndgpa.Clusters(block_of_node, torch.arange(blocks) // per_cell)


PIVOT = lambda: ndgpa.Image((256, 256), 4, 2)  # noqa: E731
CHAL = lambda: ndgpa.Image((512, 256), 8, 1)  # noqa: E731
CASES = (
    *(Case(f"pivot {d}", PIVOT, 8, 8, d, 12) for d in (64, 128, 160)),
    Case("pivot 64 float16", PIVOT, 8, 8, 64, 12, torch.float16),
    Case("pivot 64 float32", PIVOT, 1, 8, 64, 12, torch.float32),
    *(Case(f"ChaL {k}", CHAL, 4, 8, 64, k) for k in (1, 2, 4)),
    Case("video 16x96x96", lambda: ndgpa.Video((16, 96, 96), (1, 4, 4), 1), 1, 8, 64, 32),
    Case("video 49,152", lambda: ndgpa.Video((48, 32, 32), 4, 1), 1, 12, 128, 77),
    Case("sequence 262,144", lambda: ndgpa.Sequence(262_144, 64, 1), 1, 8, 64, 32),
    Case("graph 100,000", lambda: graph(100_000, 8, 4), 1, 8, 64, 16),
    Case("small cells", lambda: ndgpa.Image((256, 256), 2, 1), 1, 8, 64, 12),
)
TINY = (
    Case("tiny image", lambda: ndgpa.Image((16, 16), 4, 2), 1, 2, 8, 3, torch.float32),
    Case("tiny graph", lambda: graph(50, 4, 2), 1, 2, 8, 3, torch.float32),
)


class Bench:
    """One device, its measured rates, and how a run is timed on it."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        size = 8192 if self.is_gpu else 256
        dtype = torch.bfloat16 if self.is_gpu else torch.float32
        a = torch.randn(size, size, device=device).to(dtype)
        big = torch.randn(1 << (29 if self.is_gpu else 16), device=device)
        target = torch.empty_like(big)
        rate = 2 * size**3 / self.seconds(lambda: a @ a)
        self.limits = measure.Limits(
            rate, 2 * big.numel() * 4 / self.seconds(lambda: target.copy_(big))
        )

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "cpu"

    def seconds(self, run: Callable[[], Any], enough_s: float = 2.0) -> float:
        """Median over repeats that fill the time, after three warm-ups."""
        for _ in range(3 if self.is_gpu else 1):
            run()
        first = self._once(run)
        repeats = max(3, min(100, int(enough_s / max(first, 1e-6)))) if self.is_gpu else 1
        return median(self._once(run) for _ in range(repeats))

    def _once(self, run: Callable[[], Any]) -> float:
        if not self.is_gpu:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def peak_bytes(self, run: Callable[[], Any]) -> int | None:
        """Allocated at most during a run, above what there was before."""
        if not self.is_gpu:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


class Problem:
    """Inputs of a case on the device, and a selection for those who take one."""

    def __init__(self, case: Case, bench: Bench) -> None:
        self.case, self.bench = case, bench
        self.space = case.space().to(bench.device)
        generator = torch.Generator().manual_seed(0)
        shape = (case.batch, case.heads, self.space.num_sites, case.width)
        self.inputs = [
            torch.randn(shape, generator=generator).to(bench.device, case.dtype) for _ in range(3)
        ]
        self.selection = ndgpa.select(*self.inputs[:2], self.space, case.kept)

    # Contenders

    def gpa(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ndgpa.gpa(query, key, value, self.space, self.case.kept)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ndgpa.attend(query, key, value, self.selection, self.space)

    def plain(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ndgpa.attend(query, key, value, self.selection, self.space, backend="torch")

    def dense(self, backend: SDPBackend) -> Attention:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value)

        return run

    def flex(self) -> Attention:
        """FlexAttention over the same lists; a tile of it is no larger than a block."""
        space, blocks = self.space, self.selection.blocks
        if not space.is_even:
            raise ValueError("takes no ragged blocks")
        places, sites = space.cell_sites.shape[1], space.sites_per_block
        count = torch.full(blocks.shape[:3], blocks.shape[3], dtype=torch.int32)
        count = count.to(blocks.device)
        ids = blocks.new_zeros(*blocks.shape[:3], space.num_blocks)
        ids[..., : blocks.shape[3]] = blocks
        none = torch.zeros_like(count), torch.zeros_like(ids)
        mask = BlockMask.from_kv_blocks(*none, count, ids, BLOCK_SIZE=(places, sites))
        rows, keys = min(places, 64), min(sites, 64)
        options = {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_M1": rows, "BLOCK_N1": keys}
        options |= {"BLOCK_M2": rows, "BLOCK_N2": keys}
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, fullgraph=True)

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return compiled(query, key, value, block_mask=mask, kernel_options=options)

        return run

    def vsa(self) -> Attention:
        """VSA's block-sparse Triton kernel: cells and blocks of 64 sites, bfloat16."""
        from fastvideo_kernel.block_sparse_attn import block_sparse_attn_from_indices

        places, sites = self.space.cell_sites.shape[1], self.space.sites_per_block
        if (places, sites) != (64, 64) or self.case.dtype != torch.bfloat16:
            raise ValueError("takes cells and blocks of 64 sites in bfloat16")
        ids = self.selection.blocks.contiguous()
        count = torch.full(ids.shape[:3], ids.shape[3], dtype=torch.int32, device=ids.device)
        sizes = self.space.block_sizes.int()

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return block_sparse_attn_from_indices(query, key, value, ids, count, sizes)[0]

        return run

    def laid_out(self) -> list[Tensor]:
        """Query cell by cell, key and value block by block, for those who need it so."""
        query = self.space.partition(self.inputs[0]).flatten(2, 3)
        key, value = (self.space.by_block(x).flatten(2, 3) for x in self.inputs[1:])
        return [x.contiguous() for x in (query, key, value)]

    def composed(self, out: Tensor) -> Tensor:
        return self.space.compose(out.unflatten(2, self.space.cell_sites.shape))

    # The least work

    def pairs(self) -> float:
        """Selected (query, key) pairs, all heads."""
        seen = self.space.block_sizes[self.selection.blocks.clamp(min=0)]
        seen = seen.masked_fill(self.selection.blocks < 0, 0).sum(dim=-1)
        per_cell = (self.space.cell_sites >= 0).sum(dim=1)
        return float((seen * per_cell).sum())

    def operations(self, backward: bool, dense: bool = False) -> float:
        """Two products forward; five more backward (the logits are made again)."""
        query = self.inputs[0]
        pairs = query.shape[:2].numel() * query.shape[2] ** 2 if dense else self.pairs()
        return 2 * pairs * self.case.width * (7 if backward else 2)

    def traffic(self, backward: bool) -> float:
        """Read q, k, v, write out; then read them with out and its gradient, write three more."""
        return self.unit * (12 if backward else 4)

    def selection_work(self) -> tuple[float, float]:
        """One pass over the coarse scores, query and key read once."""
        heads, blocks = self.case.batch * self.case.heads, self.space.num_blocks
        return 2 * heads * blocks**2 * self.case.width, 2 * self.unit

    @property
    def unit(self) -> int:
        return self.inputs[0].nbytes


def rows(case: Case, bench: Bench, peers: bool) -> Iterator[dict[str, Any]]:
    problem = Problem(case, bench)
    with torch.no_grad():
        truth = problem.plain(*problem.inputs)
    yield from selection_rows(problem)
    contenders: dict[str, Callable[[], Attention]] = {
        "gpa": lambda: problem.gpa,
        "attend": lambda: problem.attend,
        "torch backend": lambda: problem.plain,
        "flex": problem.flex,
    }
    if peers:
        contenders["VSA"] = problem.vsa
    for name, make in contenders.items():
        if name == "flex" and not bench.is_gpu:
            continue
        laid_out = name in ("flex", "VSA")
        yield from phases(problem, name, make, truth, laid_out)
    if case.dense:
        names = DENSE if bench.is_gpu else {"math": SDPBackend.MATH}
        for name, backend in names.items():
            attention = problem.dense(backend)
            yield from phases(problem, f"dense {name}", lambda a=attention: a, None, False)


def selection_rows(problem: Problem) -> Iterator[dict[str, Any]]:
    """With the products as they are; on a GPU also with cheaper ones, and the ids that change."""

    def run() -> Tensor:
        with torch.no_grad():
            return ndgpa.select(*problem.inputs[:2], problem.space, problem.case.kept).blocks

    work = problem.selection_work()
    least = problem.bench.limits.least_seconds(*work)
    yield line(problem, "select", "forward", problem.bench.seconds(run), least, work[0])
    if not problem.bench.is_gpu:
        return
    from ndgpa.selection import triton_relevance

    for products in ("bf16x3", "tf32"):
        with mock.patch.object(triton_relevance, "PRECISION", products):
            seconds, blocks = problem.bench.seconds(run), run()
        row = line(problem, f"select {products}", "forward", seconds, least, work[0])
        row["error"] = float((blocks != problem.selection.blocks).float().mean())
        yield row


def phases(
    problem: Problem,
    name: str,
    make: Callable[[], Attention],
    truth: Tensor | None,
    laid_out: bool,
) -> Iterator[dict[str, Any]]:
    bench, dense = problem.bench, name.startswith("dense")
    inputs = problem.laid_out() if laid_out else problem.inputs
    for phase in ("forward", "forward+backward"):
        backward = phase != "forward"
        try:
            attention = make()
            run = once(attention, inputs, backward)
            seconds = bench.seconds(run)
        except Exception as error:  # a rival's or a compiler's own errors are of any type
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield {"case": problem.case.name, "who": name, "phase": phase, "note": text[:120]}
            continue
        work = problem.operations(backward, dense)
        least = bench.limits.least_seconds(work, problem.traffic(backward))
        row = line(problem, name, phase, seconds, least, work)
        peak = bench.peak_bytes(run)
        if peak is not None:
            given, all_of_them = (4, 8) if backward else (3, 4)
            row["memory"] = (peak / problem.unit + given) / all_of_them
        if truth is not None and not backward:
            with torch.no_grad():
                out = attention(*inputs)
            out = problem.composed(out) if laid_out else out
            row["error"] = float((out - truth).abs().max() / truth.abs().max())
        yield row


def once(attention: Attention, inputs: list[Tensor], backward: bool) -> Callable[[], Any]:
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(inputs[0])

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*leaves), leaves, cotangent)

    return both


def line(
    problem: Problem, who: str, phase: str, seconds: float, least: float, work: float
) -> dict[str, Any]:
    return {
        "case": problem.case.name,
        "who": who,
        "phase": phase,
        "ms": 1e3 * seconds,
        "least_ms": 1e3 * least,
        "of_least": seconds / least,
        "tflops": work / seconds / 1e12,
    }


def tiles(case: Case, bench: Bench) -> Iterator[dict[str, Any]]:
    """Time of each kernel with each tile; the first of a kernel is the one that is used.

    Small cells are timed both joined, so that they fill a tile, and one by one.
    """
    from ndgpa.attention.triton import backward_keys, backward_queries, forward
    from ndgpa.attention.triton.inputs import Inputs
    from ndgpa.attention.triton.tiles import Tile, problem_of

    problem = Problem(case, bench)
    tables = problem.selection.blocks, problem.space.cell_sites, problem.space.blocks
    given = Inputs(*problem.inputs, None, None, *tables, None, None, scale=1.0)
    joined = problem_of(given).members
    sizes = itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 3, 4))
    for module, chooser, backward in (
        (forward, "forward_tile", False),
        (backward_queries, "query_major_tile", True),
        (backward_keys, "key_major_tile", True),
    ):
        run = once(problem.attend, problem.inputs, backward)
        usual = getattr(module, chooser)
        of_rows = dict.fromkeys((joined, 1)) if chooser != "key_major_tile" else (1,)
        for tile in (None, *(Tile(*size, m) for size in sizes for m in of_rows)):
            choose = usual if tile is None else lambda _, t=tile: t
            with mock.patch.object(module, chooser, choose):
                try:
                    ms = 1e3 * bench.seconds(run, enough_s=0.2)
                except Exception as error:
                    tqdm.write(f"{chooser} {tile}: {str(error).splitlines()[0]}")
                    continue
            yield {"case": case.name, "who": chooser, "phase": str(tile or "as used"), "ms": ms}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="on the CPU, to see that it runs")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names start so")
    parser.add_argument("--peers", type=Path, help="folder that holds fastvideo_kernel")
    parser.add_argument("--tiles", action="store_true", help="time every tile of every kernel")
    options = parser.parse_args(argv)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny runs the same program on the CPU")
    if options.peers is not None:
        os.environ["FASTVIDEO_VSA_TRITON"] = "1"
        sys.path.insert(0, str(options.peers))
    bench = Bench("cpu" if options.tiny else "cuda")
    cases = TINY if options.tiny else CASES
    cases = [c for c in cases if not options.only or c.name.startswith(tuple(options.only))]
    found = []
    for case in tqdm(cases, desc="gpu"):
        of_case = tiles(case, bench) if options.tiles else rows(case, bench, bool(options.peers))
        for row in of_case:
            tqdm.write(", ".join(f"{k} {measure._cell(v)}" for k, v in row.items()))
            found.append(row)
        if not options.tiny:
            write(bench, found, "tiles" if options.tiles else "")
    return found


def write(bench: Bench, found: list[dict[str, Any]], what: str) -> None:
    """After every case, so that a run that is cut short leaves what it has; other cases stay."""
    name = "-".join(filter(None, (bench.name.lower().replace(" ", "-"), what)))
    path = measure.RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    measured = {row["case"] for row in found}
    kept = [row for row in earlier if row["case"] not in measured] + found
    order = [case.name for case in CASES]
    kept.sort(key=lambda row: order.index(row["case"]) if row["case"] in order else len(order))
    about = {"flops_per_s": bench.limits.flops, "copy_bytes_per_s": bench.limits.bytes, "seed": 0}
    chip = {"gpu": bench.name, "cuda": torch.version.cuda, "capability": capability()}
    measure.write(name, __doc__.splitlines()[0], kept, **about, **chip)


def capability() -> list[int]:
    return list(torch.cuda.get_device_capability())


if __name__ == "__main__":
    main()
