"""A GPU, or in a rehearsal the CPU: its measured rates, and how a run is timed on it."""

import os
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import measure
import torch
from torch.nn.attention import SDPBackend

DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,  # the one of float32
}


class Bench:
    """Where rows are measured.

    Args:
        dry: Rehearse on the CPU; kernels run in Triton's interpreter.
    """

    def __init__(self, dry: bool) -> None:
        self.is_gpu = not dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.dense = {"math": SDPBackend.MATH} if dry else DENSE
        self.backend = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else None
        size, dtype = (64, torch.float32) if dry else (8192, torch.bfloat16)
        a = torch.randn(size, size, device=self.device).to(dtype)
        big = torch.randn(1 << (12 if dry else 29), device=self.device)
        target = torch.empty_like(big)
        product, copy = self.seconds(lambda: a @ a), self.seconds(lambda: target.copy_(big))
        self.limits = measure.Limits(2 * size**3 / product, 2 * big.nbytes / copy)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "cpu"

    def about(self) -> dict[str, Any]:
        """What a result file says of the device."""
        found = {"flops_per_s": self.limits.flops, "copy_bytes_per_s": self.limits.bytes, "seed": 0}
        if not self.is_gpu:
            return found
        capability = list(torch.cuda.get_device_capability())
        return found | {"gpu": self.name, "cuda": torch.version.cuda, "capability": capability}

    def seconds(self, run: Callable[[], Any], enough_s: float = 1.0) -> float:
        """Median over repeats that fill the time, after warm-ups; the host waits at their end."""
        if not self.is_gpu:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        for _ in range(2):
            run()
        first = self._repeats(run, 1)[0]
        return median(self._repeats(run, max(3, min(100, int(enough_s / max(first, 1e-6))))))

    def _repeats(self, run: Callable[[], Any], count: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]

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

    def is_lost(self) -> bool:
        """Whether an earlier error has left the GPU unusable for this process."""
        if not self.is_gpu:
            return False
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.device).add_(1).item()
        except Exception:  # of whatever type the driver's errors are by now
            return True
        return False
