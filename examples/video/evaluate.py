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
from dataclasses import dataclass
from functools import partial
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

SMALL = (16, 64)  # frames, pixels: full attention fits
LARGE = (64, 128)
KAPPAS = (2, KAPPA, 32)


@dataclass(frozen=True)
class Options:
    """Compare the attentions on held-out clips."""

    weights: Path = FOLDER
    """Folder of the trained networks."""
    out: Path = Path(__file__).parent / "results"
    """Folder of the tables."""
    seeds: int = 3
    """Damages of each small clip; a large one has one."""
    smoke: bool = False
    """One tiny clip: shows that the program runs."""


@dataclass(frozen=True)
class Method:
    """A network and the attention that it is run with."""

    name: str
    net: FillNet
    attention: Attention


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    paths = {name: options.weights / f"{name}.safetensors" for name in ATTENTIONS}
    try:
        nets = {name: load_net(path) for name, path in paths.items()}
        rows = list(measured(options, nets))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    about = machine() | {f"training of {name}": facts_of(path) for name, path in paths.items()}
    print(write_results(options.out, about, rows))


def measured(options: Options, nets: dict[str, FillNet]) -> Iterator[dict[str, Any]]:
    sizes = [(SMALL, options.seeds), (LARGE, 1)]
    if options.smoke:
        sizes = [((4, 24), 1)]
    for (frames, side), seeds in sizes:
        methods = compared(nets, with_full=(frames, side) != LARGE)
        for name in HELD_OUT:
            for moves in (True, False):
                for seed in range(seeds):
                    problem = held_out_problem(name, moves, frames, side, seed)
                    what = {
                        "clip": name,
                        "camera": "moving" if moves else "still",
                        "frames": frames,
                        "side": side,
                        "seed": seed,
                    }
                    yield from ({**what, **row} for row in judged(problem, methods))


def compared(nets: dict[str, FillNet], with_full: bool) -> list[Method]:
    window = "x".join(str(2 * reach + 1) for reach in WINDOW)
    methods = [
        Method("no attention", nets["nothing"], ATTENTIONS["nothing"]),
        Method(f"window of {window} blocks", nets["window"], ATTENTIONS["window"]),
        *(Method(f"GPA {k}", nets["gpa"], partial(gpa, kappa=k)) for k in KAPPAS),
    ]
    if with_full:
        methods.append(Method("full, trained so", nets["full"], ATTENTIONS["full"]))
        methods.append(Method("full, weights of GPA", nets["gpa"], ATTENTIONS["full"]))
    return methods


def judged(problem: Problem, methods: list[Method]) -> Iterator[dict[str, Any]]:
    """One row for each way to fill."""
    sketch = Sketch.of(problem.damaged, problem.known)
    still = torch.zeros_like(sketch.path)
    for name, path in (("linear in time", still), ("linear along the camera", sketch.path)):
        filled, _ = fill(problem.damaged, problem.known, path)
        yield {"method": name, **scores(filled, problem.truth, problem.known)}
    for method in tqdm(methods, desc="fill", leave=False):
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
        start = time.process_time()
        answer = operator(*args, **options)
        spent["attention_cpu_s"] = time.process_time() - start
        spent["attention_mb"] = peak_bytes(lambda: operator(*args, **options)) / 1e6
        entries = full_entries(len(spaces.sites), spaces.clip.num_sites)
        spent["dense_matrix_mb"] = 4 * entries / 1e6
        return answer

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
