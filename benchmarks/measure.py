"""What the benchmarks share: time, the machine and its limits, result files."""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def median_seconds(run: Callable[[], Any], repeats: int = 7, enough_s: float = 20.0) -> float:
    """Median wall time after one warm-up; fewer repeats for runs that are long."""
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > enough_s / 2:
        return first
    times = []
    for _ in range(max(1, min(repeats, int(enough_s / max(first, 1e-6))))):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def median_cpu_seconds(run: Callable[[], Any], repeats: int = 5, enough_s: float = 6.0) -> float:
    """Median processor time after one warm-up, which other programs disturb less than wall time."""
    times: list[float] = []
    while len(times) <= repeats and (len(times) < 1 or sum(times) < enough_s):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return median(times[1:] or times)


@dataclass(frozen=True)
class Limits:
    """What this machine reaches, measured in the same run.

    Args:
        flops: Float32 matrix product, operations per second.
        bytes: Copy of a large tensor, bytes read and written per second.
    """

    flops: float
    bytes: float

    def least_seconds(self, operations: float, traffic: float) -> float:
        """No program that does this work on this machine is faster."""
        return max(operations / self.flops, traffic / self.bytes)


def limits() -> Limits:
    a = torch.randn(2048, 2048)
    big = torch.randn(1 << 25)
    target = torch.empty_like(big)
    return Limits(
        2 * 2048**3 / median_seconds(lambda: a @ a),
        2 * big.numel() * 4 / median_seconds(lambda: target.copy_(big)),
    )


def machine() -> dict[str, Any]:
    """The machine and the versions, for a result file."""
    name = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(
    name: str, question: str, rows: list[dict[str, Any]], *, folder: Path | None = None, **more: Any
) -> None:
    """Write NAME.json and NAME.md to `results`; an interrupted write leaves the old files."""
    about, folder = machine(), folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    content = {"question": question, "machine": about, **more, "rows": rows}
    _replace(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        f"{question}\n",
        ", ".join(f"{key}: {value}" for key, value in about.items()) + "\n",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows),
    ]
    _replace(folder / f"{name}.md", "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
