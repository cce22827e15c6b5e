"""Does every kernel fit every chip: its shared memory, and in the forward its registers?

    PYTHONPATH=. python benchmarks/kernel_sweep.py [CHIP ...]

No GPU is needed (`ahead_of_time`). Selection, forward and backward, and the far field of a few
shapes of `kernel_resources` are compiled for every chip: compute capabilities of NVIDIA's, names of
AMD's. Writes results/kernel_sweep.json and .md. Columns: how many `kernels`; `shared_kib` of the
one that asks for most, and of how much; `forward_spills` and `other_spills` the most bytes that a
thread of a forward or of any other kernel spills, not known of AMD's.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import kernel_resources
import measure
import torch
import triton
from ahead_of_time import compile_for, registers_and_spills
from kernel_resources import FAR, SHAPES, Shape

# Shared memory of one program in KiB (CUDA C++ Programming Guide, table of compute capabilities;
# AMD CDNA3 instruction set reference).
CHIPS: dict[int | str, int] = {
    80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64,
}  # fmt: skip
NAMES = ("pivot 64", "pivot 64 float32", "video 49,152", *(shape.name for shape in FAR))
SWEPT = tuple(shape for shape in SHAPES if shape.name in NAMES)
FORWARD = ("forward", "far_forward")


def launches(run: Callable[[], Any], chip: int | str) -> list[tuple[Any, ...]]:
    """Record a run as it would be launched on a chip."""
    amd = isinstance(chip, str)

    def on_chip() -> None:
        capability = (9, 4) if isinstance(chip, str) else divmod(chip, 10)
        with (
            mock.patch("torch.cuda.get_device_capability", return_value=capability),
            mock.patch.object(torch.version, "hip", "6.2" if amd else None),
        ):
            run()

    return kernel_resources.record(on_chip, 90)


def kernels(chip: int | str, shapes: tuple[Shape, ...] = SWEPT) -> Iterator[dict[str, Any]]:
    """What each kernel of each shape asks of a chip."""
    for shape in shapes:
        for kernel, args, options in launches(lambda s=shape: kernel_resources.run(s), chip):
            used = compile_for(kernel, args, options, chip)
            found = {
                "chip": str(chip),
                "shape": shape.name,
                "kernel": kernel.__name__.removesuffix("_kernel"),
                "shared_kib": used.metadata.shared / 1024,
            }
            if "cubin" in used.asm:
                found["spilled_bytes"] = registers_and_spills(used.asm["cubin"])[1]
            yield found


def summary(chip: int | str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    spills = {
        is_forward: [
            row["spilled_bytes"]
            for row in found
            if (row["kernel"] in FORWARD) == is_forward and "spilled_bytes" in row
        ]
        for is_forward in (True, False)
    }
    return {
        "chip": str(chip),
        "kernels": len(found),
        "shared_kib": max(row["shared_kib"] for row in found),
        "of_kib": CHIPS[chip],
        "forward_spills": max(spills[True], default=None),
        "other_spills": max(spills[False], default=None),
    }


def main() -> None:
    chips = [int(x) if x.isdigit() else x for x in sys.argv[1:]] or list(CHIPS)
    found = {}
    for chip in chips:
        found[chip] = list(kernels(chip))
        print(summary(chip, found[chip]), flush=True)
    rows = [summary(chip, of_chip) for chip, of_chip in found.items()]
    every = [row for of_chip in found.values() for row in of_chip]
    question = __doc__.splitlines()[0]
    measure.write("kernel_sweep", question, rows, triton=triton.__version__, every=every)


if __name__ == "__main__":
    main()
