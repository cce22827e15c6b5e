"""The inner loop of a compiled kernel, and what its instructions are."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton

_KINDS = {
    "matrix": "HGMMA|HMMA|IMMA",
    "special": "MUFU",
    "memory": "LD|ST|ATOM|RED|SHFL",
    "integer": "IMAD(?!.MOV)|IADD|LEA|LOP|SHF|SEL|ISETP|PLOP|VIADD|VIMNMX|IMNMX|PRMT|SGXT",
    "float": "FFMA|FADD|FMUL|FMNMX|FSEL|FSETP|F2FP",
}


def inner_loop(cubin: bytes) -> list[str]:
    """The longest loop that contains no other, without predicates."""
    text, labels = _parse(_disassemble(cubin))
    loops = []
    for end, line in enumerate(text):
        target = re.search(r"\.L_x?_?\d+", line) if line.startswith("BRA") else None
        if target and labels.get(target[0], len(text)) < end:
            loops.append((labels[target[0]], end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(inner, key=lambda span: span[1] - span[0])
    return text[start : end + 1]


def kinds(instructions: list[str]) -> dict[str, int]:
    """How many there are, in all and of each kind."""
    counts = {
        name: sum(bool(re.match(pattern, line)) for line in instructions)
        for name, pattern in _KINDS.items()
    }
    return {"all": len(instructions), **counts}


def _parse(listing: str) -> tuple[list[str], dict[str, int]]:
    text: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x?_?\d+):", line):
            labels[label[1]] = len(text)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            text.append(re.sub(r"^@!?U?P\w+\s+", "", found[1].strip()))
    return text, labels


def _disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
