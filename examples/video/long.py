"""How long a clip passes through inference, and in how much memory?

    .venv/bin/python -m examples.video.long --frames 300

One pass over the whole clip; only the last convolutions take some frames at a time. Writes
`results/long.json`.
"""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from examples.common.commands import check_count, command
from examples.common.files import check_folder, write_json
from examples.video.attention import KAPPA, Spaces
from examples.video.clips import FEWEST, LARGEST, MOST_FRAMES, SMALLEST
from examples.video.data import HELD_OUT, held_out_problem
from examples.video.evaluate import machine
from examples.video.fill import fill_with
from examples.video.model import Sketch
from examples.video.weights import SHIPPED, load_net
from ndgpa.analysis import full_entries


@dataclass(frozen=True)
class Options:
    """Fill one long clip and write down what it took."""

    frames: int = 300
    side: int = 128
    kappa: int = KAPPA
    weights: Path = SHIPPED
    out: Path = Path(__file__).parent / "results"


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check_count("--frames", options.frames, FEWEST, MOST_FRAMES)
    check_count("--side", options.side, SMALLEST, LARGEST)
    check_count("--kappa", options.kappa)
    check_folder(options.out)
    net = load_net(options.weights)
    problem = held_out_problem(HELD_OUT[0], True, options.frames, options.side)
    start, cpu_start = time.perf_counter(), time.process_time()
    fill_with(net, Sketch.of(problem.damaged, problem.known), options.kappa)
    spaces = Spaces.of(problem.known)
    row = {
        "frames": options.frames,
        "side": options.side,
        "sites": spaces.clip.num_sites,
        "sites_in_holes": len(spaces.sites),
        "kappa": options.kappa,
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu_start,
        "peak_gb_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "dense_matrix_gb": 4 * full_entries(len(spaces.sites), spaces.clip.num_sites) / 1e9,
    }
    write_json(options.out / "long.json", {"about": machine(), "row": row})
    print("\n".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
