"""How much memory a call needs."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Measure the most that torch's allocator held during a call, above what it held before.

    What the call returns counts as long as it lives. On the CPU torch's profiler measures; the log
    that it writes to the terminal is off meanwhile, unless `KINETO_LOG_LEVEL` says otherwise.

    Source: footnote 3 of Jetchev et al. 2021.

    Args:
        call: What to measure; it is run once.
        device: Whose memory is meant: a GPU or the CPU.
    """
    device = torch.device(device)
    return _peak_on_gpu(call, device) if device.type == "cuda" else _peak_on_cpu(call)


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], object]) -> int:
    with (
        _quiet_profiler(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording,
    ):
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = [event["args"] for event in events if event.get("name") == "[memory]"]
    held = [args for args in held if args["Device Type"] == 0]  # the CPU
    if not held:
        return 0
    before = held[0]["Total Allocated"] - held[0]["Bytes"]
    return max(args["Total Allocated"] for args in held) - before


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Have torch's profiler log nothing, and leave the environment as it was."""
    name, before = "KINETO_LOG_LEVEL", os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
