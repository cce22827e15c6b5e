"""How much memory does GPA allocate on a CPU, forward and backward?

    python benchmarks/cpu_memory.py [--quick]

One head of 64 channels, float32, block 4, cell 2, kappa 12.

Columns: `tensors_MB` bytes of query, key, value and output together; `*_MB` the most that torch's
allocator held above what was there before the call, outputs and gradients included; `/tensors` the
same over tensors_MB; `process_GB` the largest resident size of the process so far.
"""

import argparse
import resource
from typing import Any

import torch
from measure import write
from tqdm import tqdm

import ndgpa
from ndgpa.analysis import peak_bytes

CHANNELS, KEPT = 64, 12
SIDES = (128, 256, 512, 1024)


def main(quick: bool) -> None:
    torch.manual_seed(0)
    rows = [row(side) for side in tqdm(SIDES[:1] if quick else SIDES, desc="cpu_memory")]
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("cpu_memory", question, rows, kappa=KEPT, channels=CHANNELS, seed=0)
    for line in rows:
        print(line)


def row(side: int) -> dict[str, Any]:
    image = ndgpa.Image((side, side), 4, 2)
    inputs = [torch.randn(1, 1, side * side, CHANNELS, requires_grad=True) for _ in range(3)]
    tensors = 4 * inputs[0].nbytes

    def forward() -> torch.Tensor:
        return ndgpa.gpa(*inputs, image, KEPT)

    def both() -> None:
        out = forward()
        out.backward(torch.ones_like(out))

    with torch.no_grad():
        least = peak_bytes(forward)
    most = peak_bytes(both)
    return {
        "shape": f"{side}x{side}",
        "tensors_MB": tensors / 1e6,
        "forward_MB": least / 1e6,
        "forward/tensors": least / tensors,
        "forward_backward_MB": most / 1e6,
        "forward_backward/tensors": most / tensors,
        "process_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest size, no result file")
    main(parser.parse_args().quick)
