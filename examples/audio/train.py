"""Train one network: python -m examples.audio.train --operator gpa

A run of the same length and folder that was killed goes on where it was.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from examples.audio.data import Recordings, excerpt, own_recordings, recordings_to_train_on
from examples.audio.losses import copy_loss, repair_loss
from examples.audio.model import Restorer
from examples.audio.operators import operator
from examples.audio.recordings import MissingRecordingError
from examples.audio.spectrum import HOP, RATE, log_bands, spectrum
from examples.audio.weights import run_name, ship
from examples.common.checkpoints import Part
from examples.common.files import replacing
from examples.common.loop import run, seed_everything


@dataclass(frozen=True)
class Options:
    """Train a network to restore recordings."""

    operator: str = "gpa"
    """gpa, window, full or nothing."""
    causal: bool = False
    """Never look at what comes later."""
    recordings: tuple[Path, ...] = ()
    """Recordings of your own, trained on besides."""
    out: Path = Path("runs/audio")
    """The run goes into a folder in here, named after the attention; a smoke run below smoke."""
    cpu_minutes: float = 2.5
    """Processor time; the number of steps follows from how long the first ones take."""
    steps: int | None = None
    """Steps, in place of a time."""
    excerpt_s: float = 16.0
    """Seconds of sound in a step."""
    rate: float = 2e-3
    """Learning rate after the warm-up."""
    seed: int = 0
    ship: bool = False
    """Put the network among those that come with the example."""
    smoke: bool = False
    """A few steps on seconds of sound: shows that the program runs, not that it works."""


def main(options: Options) -> None:
    try:
        train(options)
    except (ValueError, OSError, MissingRecordingError) as error:
        sys.exit(f"error: {error}")


def train(options: Options) -> Restorer:
    torch.set_flush_denormal(True)
    if options.smoke and options.ship:
        raise ValueError("--ship is for a network that is trained; --smoke takes three steps only")
    operator(options.operator, 1000, options.causal)  # a wrong name is told before any work
    recordings = recordings_to_train_on(own_recordings(list(options.recordings)))
    excerpt_s = 4.0 if options.smoke else options.excerpt_s
    out = options.out / "smoke" if options.smoke else options.out
    folder = out / run_name(options.operator, options.causal)
    folder.mkdir(parents=True, exist_ok=True)
    steps = 3 if options.smoke else options.steps
    if steps is None:
        steps = steps_in(options, recordings, folder)
    net, parts, advance = prepare(options, recordings, excerpt_s, steps)
    facts = {"operator": options.operator, "causal": options.causal, "steps": steps}
    facts |= {"excerpt_s": excerpt_s, "rate": options.rate, "seed": options.seed}
    facts |= {"recordings": [str(path) for path in options.recordings]}
    run(folder, parts, advance, steps, seed=options.seed, facts=facts)
    if options.ship:
        print(ship(options.operator, options.causal, options.out))
    return net


def prepare(
    options: Options, recordings: Recordings, excerpt_s: float, steps: int
) -> tuple[Restorer, dict[str, Part], Callable[[int], dict[str, float]]]:
    """The network, all that learns, and one step."""
    seed_everything(options.seed, 1 << 31)
    net = Restorer(causal=options.causal)
    optimizer = optimizer_for(net)
    samples = round(RATE * excerpt_s)
    attend = operator(options.operator, 1 + samples // HOP, options.causal)

    def advance(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate_at(step, steps, options.rate)
        damaged = excerpt(recordings, samples, torch.default_generator)
        true = log_bands(spectrum(damaged.true))
        repair = net(damaged.wave, damaged.known, attend)
        gaps = repair.question.known
        repaired, copied = repair_loss(repair, true, gaps), copy_loss(repair, true, gaps)
        optimizer.zero_grad()
        (repaired + copied).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return {"repair": repaired.item(), "copy": copied.item()}

    return net, {"net": net, "optimizer": optimizer}, advance


def optimizer_for(net: Restorer) -> torch.optim.Optimizer:
    """The sharpness of the attention learns five times faster than the rest."""
    sharpness = [net.log_sharpness]
    others = [p for name, p in net.named_parameters() if name != "log_sharpness"]
    groups = [{"params": others, "factor": 1.0}, {"params": sharpness, "factor": 5.0}]
    return torch.optim.Adam(groups, betas=(0.9, 0.98))


def rate_at(step: int, steps: int, rate: float, warm_up: int = 30) -> float:
    """A warm-up, then a cosine to zero."""
    return rate * min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2


def steps_in(options: Options, recordings: Recordings, folder: Path, trial: int = 12) -> int:
    """How many steps fit into the time, measured once for a folder and kept in steps.json."""
    path = folder / "steps.json"
    wanted = {k: str(v) for k, v in asdict(options).items() if k not in ("out", "ship")}
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["options"] == wanted:
            return kept["steps"]
    _, _, advance = prepare(options, recordings, options.excerpt_s, 1000)
    seconds = []
    for step in range(trial):
        seed_everything(options.seed, step)
        start = time.process_time()
        advance(step)
        seconds.append(time.process_time() - start)
    second = sorted(seconds[2:])[len(seconds[2:]) // 2]
    steps = max(1, round(60 * options.cpu_minutes / second))
    with replacing(path) as part:
        part.write_text(json.dumps({"steps": steps, "step_s": second, "options": wanted}, indent=1))
    return steps


if __name__ == "__main__":
    main(tyro.cli(Options))
