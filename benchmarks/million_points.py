"""Does attention over a million points fit in seconds and in 8 GB, on a CPU?

    python benchmarks/million_points.py [--quick]

A noisy bumpy sphere of points in three dimensions, one head of 32 channels, float32, kappa 12.

Columns: `points` sites; `block` sites of a block; `cell` blocks of a cell; `structure_s` seconds
for `ndgpa.PointCloud`; `forward_s` seconds for `ndgpa.gpa` without gradients, both phases, the
first call (which also makes the structure's other tables); `process_GB` the largest resident size
of the process so far, inputs and all.
"""

import argparse
import resource
import time
from typing import Any

import torch
from measure import write
from tqdm import tqdm

import ndgpa

CHANNELS, KEPT = 32, 12
CASES = ((100_000, 32, 8), (1_000_000, 64, 8), (1_000_000, 32, 8))


def main(quick: bool) -> None:
    cases = CASES[:1] if quick else CASES
    rows = [row(*case) for case in tqdm(cases, desc="million_points")]
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("million_points", question, rows, kappa=KEPT, channels=CHANNELS, seed=0)
    for line in rows:
        print(line)


def row(points: int, block: int, cell: int) -> dict[str, Any]:
    torch.manual_seed(0)
    position = bumpy_sphere(points)
    start = time.perf_counter()
    structure = ndgpa.PointCloud(position, block, cell)
    structured = time.perf_counter()
    inputs = [torch.randn(1, 1, points, CHANNELS) for _ in range(3)]
    ready = time.perf_counter()
    with torch.no_grad():
        out = ndgpa.gpa(*inputs, structure, KEPT)
    done = time.perf_counter()
    assert out.isfinite().all()
    return {
        "points": points,
        "block": block,
        "cell": cell,
        "structure_s": structured - start,
        "forward_s": done - ready,
        "process_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def bumpy_sphere(points: int) -> torch.Tensor:  # (points, 3)
    direction = torch.nn.functional.normalize(torch.randn(points, 3), dim=1)
    bumps = 1 + 0.2 * torch.sin(5 * direction).prod(dim=1, keepdim=True)
    return direction * (bumps + 0.01 * torch.randn(points, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the smallest case, no result file")
    main(parser.parse_args().quick)
