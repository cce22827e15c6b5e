"""Which attention fills holes best? Held-out clips, every attention trained for the same time.

    .venv/bin/python -m examples.video.evaluate                       with the weights that ship
    .venv/bin/python -m examples.video.evaluate --weights runs/video  with one's own

Writes `results/table.md` and `results/table.json`: PSNR in dB, SSIM and flicker (error of the
change from frame to frame, in parts of 255) in the holes; processor seconds and memory of the
attention. A smoke run writes them into `runs/video/smoke/results`.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, command, ignore_interrupts
from examples.common.files import check_folder
from examples.common.untrusted import BadInput
from examples.video.attention import (
    ATTENTIONS,
    KAPPA,
    WINDOW,
    Attention,
    Spaces,
    attention_of,
    gpa,
)
from examples.video.data import HELD_OUT, Problem, held_out_problem
from examples.video.guess import fill
from examples.video.metrics import scores
from examples.video.model import FillNet, Sketch
from examples.video.report import write_results
from examples.video.weights import FOLDER, facts_of, load_net, weights_of
from ndgpa.analysis import full_entries, peak_bytes

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("runs/video/smoke/results")
KAPPAS = (4, KAPPA, 64)


@dataclass(frozen=True)
class Size:
    """What a clip is brought to, and whether full attention can still be waited for."""

    frames: int
    side: int
    full: bool
    still: bool  # also with a camera that stands still


SMALL, LARGE = Size(16, 48, True, True), Size(64, 128, False, False)
TINY = Size(4, 24, True, True)


@dataclass(frozen=True)
class Options:
    """Compare the attentions on held-out clips."""

    weights: Path = FOLDER
    """Folder of the trained networks."""
    out: Path | None = None
    """Folder of the tables, in place of results/."""
    seeds: int = 2
    """Damages of each small clip; a large one has one."""
    processes: int = 1
    """Jobs to do at the same time."""
    attentions: tuple[str, ...] = ()
    """Of `--attentions` of the training: compare the networks trained with these, and nothing else;
    needs `--out`."""
    network: str = ""
    """Give `--attentions` the network trained with this one, in place of each its own."""
    large: bool = True
    """Also fill the large clips."""
    smoke: bool = False
    """Tiny clips: shows that the program runs."""


@dataclass(frozen=True)
class Job:
    """One damaged clip, filled in one way."""

    clip: str
    camera: str
    seed: int
    size: Size
    way: str


Way = Callable[[Problem, Sketch], dict[str, Any]]
Ways = Callable[[bool], dict[str, Way]]  # whether full attention is asked for -> by name


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check_count("--seeds", options.seeds, most=1000)
    check_count("--processes", options.processes, most=64)
    torch.set_num_threads(max(1, torch.get_num_threads() // options.processes))
    if options.network and not options.attentions:
        raise BadInput("--network needs --attentions, which are given it")
    if options.attentions and options.out is None:
        raise BadInput("--attentions makes a table of some of them only; name its folder by --out")
    out = options.out or (SMOKE_RESULTS if options.smoke else RESULTS)
    wanted = options.attentions or ("gpa",)  # of the others those that are there
    paths = {
        name: weights_of(options.weights, options.network or name)
        for name in options.attentions or ATTENTIONS
    }
    paths = {name: path for name, path in paths.items() if path.exists() or name in wanted}
    check_folder(out)
    nets = {name: load_net(path) for name, path in paths.items()}
    about = machine() | {f"training of {name}": facts_of(path) for name, path in paths.items()}
    rows: list[dict[str, Any]] = []
    found = partial(named_ways, nets) if options.attentions else partial(ways, nets)
    for row in measured(jobs(options, found), found, options.processes):
        rows.append(row)
        text = write_results(out, about, rows)
    print(text)


def jobs(options: Options, ways: Ways) -> list[Job]:
    sizes = {TINY: 1} if options.smoke else {SMALL: options.seeds}
    if options.large and not options.smoke:
        sizes[LARGE] = 1
    return [
        Job(clip, camera, seed, size, way)
        for size, seeds in sizes.items()
        for clip, camera, seed in product(HELD_OUT, ("moving", "still"), range(seeds))
        if size.still or camera == "moving"
        for way in ways(size.full)
    ]


def measured(jobs: list[Job], ways: Ways, processes: int) -> Iterator[dict[str, Any]]:
    """Do one job after another; yield the row of each."""
    if processes == 1:
        yield from (row_of(job, ways) for job in tqdm(jobs))
        return
    with get_context("fork").Pool(processes, ignore_interrupts) as pool:
        yield from tqdm(pool.imap(partial(row_of, ways=ways), jobs), total=len(jobs))


def row_of(job: Job, ways: Ways) -> dict[str, Any]:
    frames, side = job.size.frames, job.size.side
    problem = held_out_problem(job.clip, job.camera == "moving", frames, side, job.seed)
    sketch = Sketch.of(problem.damaged, problem.known)
    what = {"clip": job.clip, "camera": job.camera, "seed": job.seed}
    what |= {"frames": frames, "side": side, "method": job.way}
    return what | ways(job.size.full)[job.way](problem, sketch)


def ways(nets: dict[str, FillNet], full: bool) -> dict[str, Way]:
    """List every way there is a network for; full attention only where it is asked for."""
    window = f"window of {'x'.join(str(2 * reach + 1) for reach in WINDOW)} blocks"
    found: dict[str, Way] = {"linear in time": in_time, "linear along the camera": along_path}
    for name, label in {"nothing": "no attention", "window": window}.items():
        if name in nets:
            found[label] = partial(by_network, net=nets[name], attention=ATTENTIONS[name])
    for k in KAPPAS:
        found[f"GPA {k}"] = partial(by_network, net=nets["gpa"], attention=partial(gpa, kappa=k))
    if full:
        for name, label in {"window": window, "full": "full"}.items():
            way = partial(by_network, net=nets["gpa"], attention=ATTENTIONS[name])
            found[f"{label}, weights of GPA"] = way
    if full and "full" in nets:
        found["full"] = partial(by_network, net=nets["full"], attention=ATTENTIONS["full"])
    return found


def named_ways(nets: dict[str, FillNet], full: bool) -> dict[str, Way]:
    """List each network with the attention that it was trained with."""
    return {
        name: partial(by_network, net=net, attention=attention_of(name))
        for name, net in nets.items()
    }


def in_time(problem: Problem, sketch: Sketch) -> dict[str, Any]:
    filled, _ = fill(problem.damaged, problem.known, torch.zeros_like(sketch.path))
    return scores(filled, problem.truth, problem.known)


def along_path(problem: Problem, sketch: Sketch) -> dict[str, Any]:
    filled, _ = fill(problem.damaged, problem.known, sketch.path)
    return scores(filled, problem.truth, problem.known)


@torch.no_grad()
def by_network(
    problem: Problem, sketch: Sketch, net: FillNet, attention: Attention
) -> dict[str, Any]:
    spent: dict[str, Any] = {}
    filling = net(sketch, partial(watched, attention=attention, spent=spent))
    return scores(filling.frames, problem.truth, problem.known) | spent


def watched(spaces: Spaces, attention: Attention, spent: dict[str, Any]) -> Callable[..., Tensor]:
    """Wrap the attention so that it writes what it cost into `spent`."""
    operator = attention(spaces)

    def call(*args: Any, **options: Any) -> Tensor:
        answers = []

        def answer() -> None:
            start = time.process_time()
            answers.append(operator(*args, **options))
            spent["attention_cpu_s"] = time.process_time() - start

        spent["attention_mb"] = peak_bytes(answer) / 1e6
        entries = full_entries(len(spaces.sites), spaces.clip.num_sites)
        spent["dense_matrix_mb"] = 4 * entries / 1e6
        return answers[0]

    return call


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
