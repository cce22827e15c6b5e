"""How much memory a call needs."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs to the terminal

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most that torch's allocator held during a call, above what it held before.

    What the call returns counts as long as it lives. Source: footnote 3 of Jetchev et al. 2021.

    Args:
        call: It is run once.
        device: Whose memory is meant: a GPU or the CPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
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
