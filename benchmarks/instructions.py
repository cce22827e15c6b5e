"""Which instructions a compiled kernel runs, loop by loop, and how long each unit of a chip takes.

Cycles are those of one of the four sub-cores of a Hopper multiprocessor for one warp: 32 lanes of
float32 arithmetic a cycle, 16 of integers, comparisons and conversions, 4 of special functions; one
memory instruction a cycle for all four sub-cores; 512 multiplications in 16 bit (CUDA C++
Programming Guide, table of arithmetic throughput; NVIDIA H100 whitepaper).
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
UNITS = ("issue", "integer", "float", "special", "memory", "matrix")
_MATRIX = re.compile(r"(?:HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(\d+))\S*")
_SPECIAL = re.compile(r"MUFU|F2F\.|F2I|I2F|FRND")
_MEMORY = re.compile(r"LD|ST(S|G|L|\.|$)|ATOM|RED|SHFL|REDUX")
_FLOAT = re.compile(r"FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2")
_FREE = re.compile(r"U[A-Z]|R2UR|S2U?R|NOP|BRA|EXIT|BSSY|BSYNC|WARP|DEPBAR|LDGDEPBAR|BAR|LDC")


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop, those of the loops within it left out, and how deep it stands."""

    depth: int
    instructions: tuple[str, ...]
    is_inner: bool  # contains no other

    @property
    def cycles(self) -> dict[str, float]:
        return cycles(self.instructions)


@dataclass(frozen=True)
class Program:
    """A kernel: what runs once, and its loops in the order in which they begin."""

    once: tuple[str, ...]
    loops: tuple[Loop, ...]

    @property
    def inner_loop(self) -> Loop:
        """The longest loop that contains no other."""
        return max((x for x in self.loops if x.is_inner), key=lambda x: len(x.instructions))


def cycles(instructions: tuple[str, ...]) -> dict[str, float]:
    """Cycles of each unit for one warp to run these instructions once."""
    found = Counter(dict.fromkeys(UNITS, 0.0))
    for text in instructions:
        found["issue"] += 1
        unit, count = _cost(text)
        found[unit] += count
    return dict(found)


def counts(instructions: tuple[str, ...]) -> dict[str, int]:
    """How many instructions there are, and how many of them each unit runs."""
    found = Counter(dict.fromkeys(UNITS, 0))
    for text in instructions:
        unit, _ = _cost(text)
        found["issue"] += 1
        found[unit] += unit != "issue"
    return dict(found)


def _cost(text: str) -> tuple[str, float]:
    name = text.split()[0]
    if matrix := _MATRIX.match(name):
        return "matrix", _multiplications(matrix) / (256 if "TF32" in name else 512)
    if _SPECIAL.match(name):
        return "special", 8
    if _FREE.match(name):
        return "issue", 0
    if _MEMORY.match(name):
        return "memory", 4
    if _FLOAT.match(name):
        return "float", 1
    if name.startswith("IMAD") and "MOV" not in name:
        return "float", 4 if "WIDE" in name or "HI" in name else 2
    return "integer", 1 if name.startswith(("MOV", "IMAD.MOV", "CS2R")) else 2


def _multiplications(matrix: re.Match[str]) -> int:
    """Of one warp: a quarter of a product of four warps, or its own, as in 16816 or 1688."""
    if matrix[1]:
        return int(matrix[1]) * int(matrix[2]) * int(matrix[3]) // 4
    depth = int(matrix[4][3:])
    return 16 * 8 * depth


def program(cubin: bytes) -> Program:
    """Disassemble a kernel and find its loops, which are jumps backward."""
    text, labels = _parse(_disassemble(cubin))
    jumps = {}
    for end, line in enumerate(text):
        target = re.search(r"\.L_x?_?\d+", line) if line.startswith("BRA") else None
        if target and labels.get(target[0], len(text)) < end:
            start = labels[target[0]]
            jumps[start] = max(end, jumps.get(start, 0))
    spans = sorted(jumps.items())
    loops = tuple(_loop(text, span, spans) for span in spans)
    inside = {i for start, end in spans for i in range(start, end + 1)}
    once = tuple(line for i, line in enumerate(text) if i not in inside)
    return Program(once, loops)


def _loop(text: list[str], span: tuple[int, int], spans: list[tuple[int, int]]) -> Loop:
    start, end = span
    inner = [s for s in spans if s != span and start <= s[0] and s[1] <= end]
    outer = [s for s in spans if s != span and s[0] <= start and end <= s[1]]
    own = [i for i in range(start, end + 1) if not any(a <= i <= b for a, b in inner)]
    return Loop(len(outer), tuple(text[i] for i in own), not inner)


def _parse(listing: str) -> tuple[list[str], dict[str, int]]:
    """Instructions without their predicates, and where labels stand."""
    text: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x?_?\d+):", line):
            labels[label[1]] = len(text)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            text.append(re.sub(r"^@!?U?P\w+\s+", "", found[1].strip()))
    while text and text[-1].startswith(("NOP", "BRA")):  # padding behind the end
        text.pop()
    return text, labels


def _disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "nvdisasm", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
