"""Compile kernel launches for a GPU that is not there, and read what they use of it."""

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may have, in bytes (CUDA C++ Programming Guide, table of compute
# capabilities: 163 KiB on 8.0, 227 KiB on 9.0).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Recorder:
    """Stands in for a kernel and remembers how it was launched."""

    kernel: Any
    launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    programs: int = 0  # of all launches

    @property
    def name(self) -> str:
        return self.kernel.__name__.removesuffix("_kernel")

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self.launches.append((args, options))
            self.programs += math.prod(grid)

        return launch


@dataclass(frozen=True)
class Resources:
    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix: str  # the matrix instruction: wgmma, mma or none


def compile_launch(
    kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int
) -> Resources:
    """Compile as the just-in-time compiler would for these arguments, and read the binary."""
    compiled = compile_for(kernel, args, options, capability)
    registers, spilled = registers_and_spills(compiled.asm["cubin"])
    text = compiled.asm["ptx"]
    matrix = "wgmma" if "wgmma.mma_async" in text else "mma" if "mma.sync" in text else "none"
    return Resources(registers, spilled, compiled.metadata.shared, matrix)


def compile_for(
    kernel: Any, args: tuple[Any, ...], options: dict[str, Any], chip: int | str
) -> Any:
    """Compile for a compute capability, or for an AMD chip by its name."""
    amd = isinstance(chip, str)
    return triton.compile(
        ASTSource(kernel, *specialize(kernel, args, options)),
        target=GPUTarget("hip", chip, 64) if amd else GPUTarget("cuda", chip, 32),
        options={k: v for k, v in options.items() if k in _OPTIONS},
    )


def specialize(
    kernel: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """What a compiled kernel depends on: types, constants, and what is divisible by 16."""
    values = dict(zip(kernel.arg_names, args))
    values |= {k: v for k, v in options.items() if k not in _OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        constexpr = kernel.params[index].is_constexpr
        fixed = not kernel.params[index].do_not_specialize
        if constexpr or value is None or (fixed and type(value) is int and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if fixed and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that each thread spills to local memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers = re.search(r"REG:(\d+)", report)
    stack, local = re.search(r"STACK:(\d+)", report), re.search(r"LOCAL:(\d+)", report)
    assert registers, report
    assert stack, report
    assert local, report
    return int(registers[1]), int(stack[1]) + int(local[1])
