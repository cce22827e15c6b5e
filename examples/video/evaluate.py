"""Which attention fills holes best? Held-out clips, every attention trained for the same time.

    .venv/bin/python -m examples.video.evaluate                       with the weights that ship
    .venv/bin/python -m examples.video.evaluate --weights runs/video  with one's own

Writes `results/table.md` and `results/table.json`: PSNR in dB, SSIM and flicker (error of the
change from frame to frame, in parts of 255) in the holes; processor seconds and memory of the
attention.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
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

from examples.video.attention import ATTENTIONS, KAPPA, WINDOW, Attention, Spaces, gpa
from examples.video.data import HELD_OUT, Problem, held_out_problem
from examples.video.guess import fill
from examples.video.metrics import scores
from examples.video.model import FillNet, Sketch
from examples.video.report import write_results
from examples.video.weights import FOLDER, facts_of, load_net
from ndgpa.analysis import full_entries, peak_bytes

KAPPAS = (2, 4, KAPPA)


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
    out: Path = Path(__file__).parent / "results"
    """Folder of the tables."""
    seeds: int = 2
    """Damages of each small clip; a large one has one."""
    processes: int = 1
    """Clips to judge at the same time."""
    smoke: bool = False
    """Tiny clips: shows that the program runs."""


@dataclass(frozen=True)
class Method:
    """A network and the attention that it is run with."""

    name: str
    net: FillNet
    attention: Attention


@dataclass(frozen=True)
class Case:
    """One damaged clip."""

    clip: str
    camera: str
    seed: int
    size: Size


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    paths = {name: options.weights / f"{name}.safetensors" for name in ATTENTIONS}
    paths = {name: path for name, path in paths.items() if path.exists() or name == "gpa"}
    try:
        nets = {name: load_net(path) for name, path in paths.items()}
        about = machine() | {f"training of {name}": facts_of(path) for name, path in paths.items()}
        rows: list[dict[str, Any]] = []
        for more in measured(cases(options), nets, options.processes):
            rows += more
            text = write_results(options.out, about, rows)
        print(text)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def cases(options: Options) -> list[Case]:
    sizes = {TINY: 1} if options.smoke else {SMALL: options.seeds, LARGE: 1}
    return [
        Case(clip, camera, seed, size)
        for size, seeds in sizes.items()
        for clip, camera, seed in product(HELD_OUT, ("moving", "still"), range(seeds))
        if size.still or camera == "moving"
    ]


def measured(
    cases: list[Case], nets: dict[str, FillNet], processes: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one damaged clip after another."""
    if processes == 1:
        yield from (rows_of(case, nets) for case in tqdm(cases, desc="clips"))
        return
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        yield from tqdm(pool.map(partial(rows_of, nets=nets), cases), "clips", len(cases))


def rows_of(case: Case, nets: dict[str, FillNet]) -> list[dict[str, Any]]:
    frames, side = case.size.frames, case.size.side
    problem = held_out_problem(case.clip, case.camera == "moving", frames, side, case.seed)
    what = {"clip": case.clip, "camera": case.camera, "seed": case.seed}
    what |= {"frames": frames, "side": side}
    return [what | row for row in judged(problem, compared(nets, case.size.full))]


def compared(nets: dict[str, FillNet], full: bool) -> list[Method]:
    """What there are networks for; full attention only where it is asked for."""
    window = f"window of {'x'.join(str(2 * reach + 1) for reach in WINDOW)} blocks"
    names = {"nothing": "no attention", "window": window}
    methods = [
        Method(label, nets[name], ATTENTIONS[name]) for name, label in names.items() if name in nets
    ]
    methods += [Method(f"GPA {k}", nets["gpa"], partial(gpa, kappa=k)) for k in KAPPAS]
    if full:
        methods.append(Method(f"{window}, weights of GPA", nets["gpa"], ATTENTIONS["window"]))
        methods.append(Method("full, weights of GPA", nets["gpa"], ATTENTIONS["full"]))
    if full and "full" in nets:
        methods.append(Method("full", nets["full"], ATTENTIONS["full"]))
    return methods


def judged(problem: Problem, methods: list[Method]) -> Iterator[dict[str, Any]]:
    """One row for each way to fill."""
    sketch = Sketch.of(problem.damaged, problem.known)
    still = torch.zeros_like(sketch.path)
    for name, path in (("linear in time", still), ("linear along the camera", sketch.path)):
        filled, _ = fill(problem.damaged, problem.known, path)
        yield {"method": name, **scores(filled, problem.truth, problem.known)}
    for method in methods:
        yield {"method": method.name, **run(method, problem, sketch)}


@torch.no_grad()
def run(method: Method, problem: Problem, sketch: Sketch) -> dict[str, Any]:
    spent: dict[str, Any] = {}
    filling = method.net(sketch, partial(watched, attention=method.attention, spent=spent))
    return scores(filling.frames, problem.truth, problem.known) | spent


def watched(spaces: Spaces, attention: Attention, spent: dict[str, Any]) -> Callable[..., Tensor]:
    """The attention, with what it cost written into `spent`."""
    operator = attention(spaces)

    def call(*args: Any, **options: Any) -> Tensor:
        start, answers = time.process_time(), []
        held = peak_bytes(lambda: answers.append(operator(*args, **options)))
        spent["attention_cpu_s"] = time.process_time() - start
        spent["attention_mb"] = held / 1e6
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
    main(tyro.cli(Options))
