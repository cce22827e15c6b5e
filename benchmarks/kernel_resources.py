"""What does each kernel use of a GPU, for the shapes of `gpu.py`?

    python benchmarks/kernel_resources.py

No GPU is needed: the kernels are compiled ahead of time, as the just-in-time compiler would for
these arguments, and the binaries are read. Writes `results/kernel_resources.json` and `.md`.
Columns: registers of a thread (of 255), bytes that a thread spills (its stack and local memory),
shared memory of a program in KiB, the matrix instruction (wgmma on sm_90, mma elsewhere; float32
products are exact by default and use none), and the tile.

And `results/kernel_instructions.json` and `.md`, for sm_90: cycles that each unit of a sub-core
needs for one warp to run a loop of a kernel once (`instructions`), `issue` being the number of
instructions; `once` is what stands outside of loops. A test compares: a change that adds to a loop
is seen.
"""

import argparse
import importlib
import json
import pkgutil
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import instructions
import measure
import torch
import triton
from ahead_of_time import SHARED_LIMIT, Recorder, compile_for, compile_launch
from torch import Tensor

import ndgpa
from ndgpa.attention.far_rows import Inputs as FarInputs
from ndgpa.attention.triton import (
    backward_keys,
    backward_queries,
    far_backward,
    far_forward,
    forward,
)
from ndgpa.attention.triton.inputs import Inputs
from ndgpa.selection import triton_top_k
from ndgpa.selection.relevance import CoarseCells
from ndgpa.structures import triton_means

RESULTS = Path(__file__).parent / "results"
CAPABILITIES = (80, 90)
HEADS = 64  # of all shapes


@dataclass(frozen=True)
class Shape:
    """A problem as the kernels see it; one head stands for all."""

    name: str
    sites: int
    width: int
    cells: int
    places: int  # sites of a cell
    blocks: int
    sites_per_block: int
    kept: int
    dtype: torch.dtype = torch.bfloat16
    far: bool = False  # its far field "site", in place of what is selected


FAR = (
    Shape("pivot 64, far site", 65536, 64, 1024, 64, 4096, 16, 12, far=True),
    Shape("video 49,152, far site", 49152, 128, 768, 64, 768, 64, 77, far=True),
)
SHAPES = (
    Shape("pivot 64", 65536, 64, 1024, 64, 4096, 16, 12),
    Shape("pivot 160", 65536, 160, 1024, 64, 4096, 16, 12),
    Shape("pivot 64 float32", 65536, 64, 1024, 64, 4096, 16, 12, torch.float32),
    Shape("ChaL 512x256", 131072, 64, 2048, 64, 2048, 64, 4),
    Shape("video 16x96x96", 147456, 64, 9216, 16, 9216, 16, 32),
    Shape("video 49,152", 49152, 128, 768, 64, 768, 64, 77),
    Shape("video 49,152, cells of 2", 49152, 128, 384, 128, 768, 64, 77),
    Shape("sequence 262,144", 262144, 64, 4096, 64, 4096, 64, 32),
    Shape("graph 100,000", 100000, 64, 3125, 32, 12500, 8, 16),
    Shape("small cells", 65536, 64, 16384, 4, 16384, 4, 12),
    *FAR,
)


@dataclass(frozen=True)
class Row:
    shape: str
    kernel: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_kib: float
    shared_limit_kib: float
    matrix: str
    tile: str


def rows(shape: Shape, capability: int, only: Container[str] | None = None) -> Iterator[Row]:
    """What each kernel uses (of those named in `only`, where it is given)."""
    for kernel, args, options in launches(shape, capability):
        name = kernel.__name__.removesuffix("_kernel")
        if only is not None and name not in only:
            continue
        used = compile_launch(kernel, args, options, capability)
        tile = "x".join(str(options[k]) for k in ("ROWS", "CELLS", "KEYS") if k in options)
        yield Row(
            shape.name,
            name,
            capability,
            used.registers,
            used.spilled_bytes,
            round(used.shared_bytes / 1024, 1),
            SHARED_LIMIT[capability] / 1024,
            used.matrix,
            f"{tile or '-'}, {options['num_warps']} warps",
        )


INSTRUCTIONS_OF = ("pivot 64", "video 49,152")


def instruction_rows(
    shape: Shape, only: Container[str] | None = None
) -> Iterator[dict[str, str | int]]:
    """What each kernel (of those in `only`) runs once, and in each of its loops in their order."""
    for kernel, args, options in launches(shape, 90):
        name = kernel.__name__.removesuffix("_kernel")
        if only is not None and name not in only:
            continue
        found = instructions.program(compile_for(kernel, args, options, 90).asm["cubin"])
        parts = {"once": found.once} | {
            f"loop {i}": loop.instructions for i, loop in enumerate(found.loops)
        }
        for part, text in parts.items():
            counts = {unit: round(c) for unit, c in instructions.cycles(text).items()}
            yield {"shape": shape.name, "kernel": name, "part": part, **counts}


def launches(shape: Shape, capability: int) -> list[tuple[Any, ...]]:
    """Every kernel launch of selection, forward and backward."""
    return record(lambda: run(shape), capability)


def run(shape: Shape) -> None:
    """Selection, forward and backward, as the public calls launch them; or those of a far field."""
    if not shape.far:
        _selection(shape)
    attend(shape)


def attend(shape: Shape) -> None:
    """Forward and backward of what is selected, or of the far field alone."""
    if shape.far:
        _far_field(shape)
    else:
        _attention(shape)


def record(run: Callable[[], Any], capability: int) -> list[tuple[Any, ...]]:
    """Kernel, arguments and options of the first launch of each kernel in a run without data."""
    return [(r.kernel, *r.launches[0]) for r in recorders(run, capability)]


def recorders(run: Callable[[], Any], capability: int) -> list[Recorder]:
    """Each kernel that a run without data launches, with its launches."""
    found: dict[str, Recorder] = {}
    with ExitStack() as stack:
        chip = (capability // 10, 0)
        stack.enter_context(mock.patch("torch.cuda.get_device_capability", return_value=chip))
        for module in kernel_modules():
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                recorder = found.setdefault(name, Recorder(getattr(module, name)))
                stack.enter_context(mock.patch.object(module, name, recorder))
        run()
    return [r for r in found.values() if r.launches]


def kernel_modules() -> list[ModuleType]:
    """Import every file of the package that has Triton in its path."""
    found = pkgutil.walk_packages(ndgpa.__path__, "ndgpa.")
    return [importlib.import_module(info.name) for info in found if "triton" in info.name]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(shape: Shape) -> None:
    x = meta(1, HEADS, shape.sites, shape.width, dtype=shape.dtype)
    by_row = meta(1, HEADS, shape.sites)
    norm = meta(1, 2, HEADS, shape.sites)
    given = Inputs(
        x,
        x,
        x,
        slot_bias=None,
        key_bias=None,
        blocks=meta(1, HEADS, shape.cells, shape.kept, dtype=torch.int32),
        cell_sites=meta(shape.cells, shape.places, dtype=torch.int64),
        key_sites=meta(shape.blocks, shape.sites_per_block, dtype=torch.int64),
        query_time=None,
        key_time=None,
        scale=0.125,
        even=True,
    )
    run_attention(given, x, by_row, norm)


def run_attention(
    given: Inputs, out: Tensor, lse: Tensor, norm: Tensor, longest: int | None = None
) -> None:
    """Forward and backward; the gradients are written over the inputs."""
    forward.forward(given, out, lse, norm)
    backward_queries.backward_queries(
        given, grad_out=out, grad_lse=lse, out=out, norm=norm, grad_query=given.query, mean=lse
    )
    backward_keys.backward_keys(
        given,
        grad_out=out,
        norm=norm,
        mean=lse,
        grad_key=given.key,
        grad_value=given.value,
        grad_bias=given.key_bias,
        longest=longest,
    )


def _far_field(shape: Shape) -> None:
    """Forward and backward."""
    queries, blocks, width = shape.sites, shape.blocks, shape.width
    given = FarInputs(
        query=meta(1, HEADS, queries, width, dtype=shape.dtype),
        key=meta(1, HEADS, blocks, width, dtype=shape.dtype),
        value=meta(1, HEADS, blocks, width, dtype=shape.dtype),
        bias=meta(1, HEADS, blocks),
        selected=meta(1, HEADS, shape.cells, shape.kept, dtype=torch.int32),
        cell=meta(queries, dtype=torch.int64),
        query_time=None,
        key_time=None,
        query_group=None,
        key_group=None,
        scale=0.125,
    )
    out, lse = meta(1, HEADS, queries, width), meta(1, HEADS, queries)
    norm = meta(1, HEADS, queries, 2)
    far_forward.far_forward(given, out, lse, norm)
    grad_out = out.to(shape.dtype)
    far_backward.far_backward_queries(
        given, grad_out=grad_out, grad_lse=lse, out=out, norm=norm, grad_query=given.query, mean=lse
    )
    far_backward.far_backward_keys(given, grad_out=grad_out, norm=norm, mean=lse)


def _selection(shape: Shape) -> None:
    """Means in two parts where features have 16 bit, as the public call makes them."""
    x = meta(1, HEADS, shape.sites, shape.width, dtype=shape.dtype)
    blocks = meta(shape.blocks, shape.sites_per_block, dtype=torch.int64)
    parts, dtype = ((), torch.float32) if shape.dtype.itemsize == 4 else ((2,), torch.bfloat16)
    coarse = meta(1, HEADS, shape.blocks, *parts, shape.width, dtype=dtype)
    triton_means.sum_blocks(x, None, blocks, coarse, even=True)
    cells = CoarseCells(
        query=coarse.unflatten(2, (shape.cells, -1)),
        key=coarse,
        bias=None,
        log_size=None,
        weight=meta(1, shape.cells, shape.blocks // shape.cells),
        cell_group=None,
        key_group=None,
        cell_time=None,
        key_time=None,
        scale=0.125,
    )
    triton_top_k.select(cells, None, shape.kept, relevance="mass", selection_heads=HEADS)


def table(found: list[Row]) -> str:
    """The rows as a Markdown table."""
    names = list(asdict(found[0]))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(str(v) for v in asdict(row).values())} |" for row in found]
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = [row for s in SHAPES for c in CAPABILITIES for row in rows(s, c)]
    RESULTS.mkdir(exist_ok=True)
    data = {"triton": triton.__version__, "rows": [asdict(row) for row in found]}
    (RESULTS / "kernel_resources.json").write_text(json.dumps(data, indent=1) + "\n")
    head = f"Compiled ahead of time by Triton {triton.__version__}; no GPU was used.\n\n"
    (RESULTS / "kernel_resources.md").write_text(head + table(found) + "\n")
    print(table(found))
    shapes = [shape for shape in SHAPES if shape.name in INSTRUCTIONS_OF]
    counted = [row for shape in shapes for row in instruction_rows(shape)]
    question = "What does each kernel run on sm_90, in cycles of each unit for one warp?"
    measure.write("kernel_instructions", question, counted, triton=triton.__version__)


if __name__ == "__main__":
    main()
