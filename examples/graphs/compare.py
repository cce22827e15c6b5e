"""Train the same network with each attention, and compare error, time and memory."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import trange

import ndgpa
from examples.graphs.model import OPERATORS, GraphNetwork
from ndgpa.analysis import full_entries, gpa_entries


class Sample(NamedTuple):
    """One problem on one graph."""

    x: Tensor  # (n, inputs)
    y: Tensor  # (n,) wanted
    edge_index: Tensor  # (2, E)
    structure: ndgpa.SpatialStructure


class Task(Protocol):
    """What an example is."""

    inputs: int
    outputs: int
    tests: list[Sample]

    def draw(self, generator: torch.Generator) -> Sample:
        """A problem to train on."""

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        """What is minimised."""

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """What is reported, in percent."""


@dataclass(frozen=True)
class Options:
    """How to train.

    Args:
        steps: One graph each.
        rate: Learning rate at the start; it falls to 0 along a cosine.
        seed: Of the network and of the problems, the same for each attention.
    """

    steps: int = 500
    rate: float = 3e-3
    seed: int = 0


def compare(task: Task, options: Options) -> tuple[list[dict[str, Any]], dict[str, GraphNetwork]]:
    """Rows of the result table, and the trained networks."""
    rows, networks = [], {}
    for name, operator in OPERATORS.items():
        torch.manual_seed(options.seed)
        network = GraphNetwork(task.inputs, task.outputs, operator)
        seconds = train(network, task, options, name)
        row = {
            "attention": name,
            "test_error_%": test(network, task),
            "step_ms": 1e3 * seconds,
            "peak_MB": peak_bytes(lambda net=network: step(net, task, task.tests[0])) / 1e6,
            "affinity_entries": entries(operator, task.tests[0].structure),
        }
        rows.append(row)
        networks[name] = network
    return rows, networks


def train(network: GraphNetwork, task: Task, options: Options, name: str) -> float:
    """Seconds a step, the median."""
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(network.parameters(), options.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    times = []
    for _ in (bar := trange(options.steps, desc=name)):
        sample = task.draw(generator)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = step(network, task, sample)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        times.append(time.perf_counter() - start)
        bar.set_postfix(loss=f"{loss:.3f}")
    return float(torch.tensor(times).median())


def step(network: GraphNetwork, task: Task, sample: Sample) -> float:
    loss = task.loss(network(sample.x, sample.edge_index, sample.structure), sample)
    loss.backward()
    return loss.item()


@torch.no_grad()
def test(network: GraphNetwork, task: Task) -> float:
    """Mean error over the tests."""
    errors = [
        task.error(network(sample.x, sample.edge_index, sample.structure), sample)
        for sample in task.tests
    ]
    return float(torch.stack(errors).mean())


def entries(operator: Any, structure: ndgpa.SpatialStructure) -> int:
    """Entries of the affinity matrix that a head computes."""
    if isinstance(operator, ndgpa.GPA):
        assert isinstance(operator.rule, int)
        return gpa_entries(structure, operator.rule).total
    if isinstance(operator, ndgpa.Full):
        return full_entries(structure.num_sites)
    return 0


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that torch's CPU allocator held during a run, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = held[0]["Total Allocated"] - held[0]["Bytes"]
    return max(args["Total Allocated"] for args in held) - before


def write(folder: Path, name: str, about: str, rows: list[dict[str, Any]]) -> str:
    """Write NAME.md, a table; and return it."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    lines = [
        about,
        "",
        f"Machine: {machine}.",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(_cell(x) for x in row.values()) + " |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".part-{name}.md"
    part.write_text(text)
    part.replace(folder / f"{name}.md")
    return text


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
