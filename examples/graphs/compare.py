"""Train the same network with each attention, and compare error, time and memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import ndgpa
from examples.common.attention import folder_name
from examples.common.commands import check_count, check_number, check_seed, set_threads
from examples.common.files import check_folder
from examples.common.loop import run
from examples.common.schedule import warm_up_cosine
from examples.common.untrusted import BadInput
from examples.graphs.model import NAMES, GraphNetwork, operator
from examples.graphs.sample import Sample
from ndgpa.analysis import full_entries, gpa_entries, peak_bytes


class Task(Protocol):
    """What an example is."""

    inputs: int
    outputs: int
    layers: int
    facts: dict[str, Any]  # what the problems to train on are made with, as JSON
    tests: list[Sample]

    def draw(self) -> Sample:
        """Draw a problem to train on, by torch's random numbers."""

    def loss(self, predicted: Tensor, sample: Sample) -> Tensor:
        """Compute what is minimised."""

    def error(self, predicted: Tensor, sample: Sample) -> Tensor:
        """Compute what is reported, in percent."""


@dataclass(frozen=True)
class Options:
    """How to train.

    Args:
        steps: Each takes the mean gradient of a few graphs.
        batch: How many.
        rate: Learning rate at the start; it falls to 0 along a cosine.
        seeds: Each is a network and an order of the problems, the same for each attention.
        attentions: Of `NAMES`, or calls such as `GPA(16, far=block)`.
        read_by: Such attentions too; each is also put into the trained networks in place of their
            own, which tells what it misses without the chance of another training.
    """

    steps: int
    batch: int = 1
    rate: float = 3e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    attentions: tuple[str, ...] = tuple(NAMES)
    read_by: tuple[str, ...] = ()


def check(options: Options, threads: int, out: Path) -> None:
    """Refuse, before any work, what cannot be done; set the number of threads."""
    check_count("--steps", options.steps)
    check_count("--batch", options.batch, most=1000)
    check_number("--rate", options.rate, 0, 1, above=True)
    if not options.seeds:
        raise BadInput("--seeds needs at least one number")
    for seed in options.seeds:
        check_seed(seed)
    if not options.attentions:
        raise BadInput("--attentions needs at least one")
    for name in (*options.attentions, *options.read_by):
        operator(name)
    set_threads(threads)
    check_folder(out)


def compare(
    task: Task, options: Options, runs: Path
) -> tuple[list[dict[str, Any]], dict[str, GraphNetwork]]:
    """Train and test every attention; return rows of the table, and the first seed's networks.

    Args:
        runs: Where checkpoints and curves go; what is trained there already is not trained again.
    """
    rows, networks = [], {}
    for name in options.attentions:
        trained = [train(task, name, options, seed, runs) for seed in options.seeds]
        networks[name] = trained[0]
        rows.append(row(name, trained, task))
        if name == "dense":  # torch's plain computation of the same, which keeps the whole matrix
            with sdpa_kernel(SDPBackend.MATH):
                rows.append(row("dense, not fused", trained, task))
        for other in options.read_by:
            swapped = [network.attending_by(operator(other)) for network in trained]
            rows.append(row(f"{name}, read by {other}", swapped, task))
    return rows, networks


def train(task: Task, name: str, options: Options, seed: int, runs: Path) -> GraphNetwork:
    torch.manual_seed(seed)
    network = GraphNetwork(task.inputs, task.outputs, operator(name), layers=task.layers)
    optimizer = torch.optim.AdamW(network.parameters(), options.rate)

    def advance(number: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = options.rate * warm_up_cosine(number, options.steps)
        optimizer.zero_grad()
        loss = sum(step(network, task, task.draw(), options.batch) for _ in range(options.batch))
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss}

    run(
        runs / f"{folder_name(name)}-{seed}",
        {"network": network, "optimizer": optimizer},
        advance,
        options.steps,
        seed=seed,
        facts={
            "batch": options.batch,
            "rate": options.rate,
            "seed": seed,
            **task.facts,
        },
    )
    return network


def step(network: GraphNetwork, task: Task, sample: Sample, batch: int = 1) -> float:
    """Add a graph's part to the mean gradient of a batch."""
    loss = task.loss(network(sample.x, sample.edge_index, sample.structure), sample) / batch
    loss.backward()
    return loss.item()


@torch.no_grad()
def test(network: GraphNetwork, task: Task) -> float:
    """Average the error over the tests."""
    errors = [
        task.error(network(sample.x, sample.edge_index, sample.structure), sample)
        for sample in task.tests
    ]
    return float(torch.stack(errors).mean())


def row(name: str, networks: list[GraphNetwork], task: Task) -> dict[str, Any]:
    """Collect the errors of all seeds, and what training on the first test costs."""
    sample, network = task.tests[0], networks[0]
    errors = [test(x, task) for x in networks]
    return {
        "attention": name,
        "test_error_%": mean(errors),
        "lowest": min(errors),
        "highest": max(errors),
        "step_cpu_ms": cpu_ms(lambda: step(network, task, sample)),
        "peak_MB": peak_bytes(lambda: step(network, task, sample)) / 1e6,
        "affinity_entries": entries(network.operator, sample.structure),
    }


def cpu_ms(call: Callable[[], object], repeats: int = 5) -> float:
    """Measure the processor time of all threads, which other work changes little; the median."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return median(times)


def entries(operator: Any, structure: ndgpa.SpatialStructure) -> int | None:
    """Count the entries of the affinity matrix that a head computes; None where a rule decides."""
    if isinstance(operator, ndgpa.Full):
        return full_entries(structure.num_sites)
    if not isinstance(operator, ndgpa.GPA):
        return 0
    if not isinstance(operator.rule, int):
        return None
    far = {None: 0, "site": structure.num_blocks, "block": ndgpa.Bundles().count}
    keys = operator.far.count if isinstance(operator.far, ndgpa.Bundles) else far[operator.far]
    return gpa_entries(structure, operator.rule).total + structure.num_sites * keys
