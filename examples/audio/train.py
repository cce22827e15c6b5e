"""Train one network: python -m examples.audio.train --operator gpa

A run that was stopped continues where it was, and one that is finished can be extended by more
steps or minutes.
"""

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
from examples.audio.spectrum import HOP, RATE, log_bands, spectrum
from examples.audio.weights import run_name, ship
from examples.common.checkpoints import Part
from examples.common.commands import check_count, check_number, check_seed, command
from examples.common.files import check_folder, write_json
from examples.common.loop import run, seed_everything
from examples.common.schedule import warm_up_cosine
from examples.common.untrusted import BadInput, fields, number, read_json

WARM_UP = 30  # steps


@dataclass(frozen=True)
class Options:
    """Train a network to restore recordings."""

    operator: str = "gpa"
    """gpa, window, full, nothing, or a call such as "GPA(12, far=block)"."""
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


def main(options: Options) -> Restorer:
    torch.set_flush_denormal(True)
    check(options)
    recordings = recordings_to_train_on(own_recordings(list(options.recordings)))
    excerpt_s = 4.0 if options.smoke else options.excerpt_s
    folder = folder_of(options)
    steps = 3 if options.smoke else options.steps
    if steps is None:
        steps = steps_in(options, recordings, folder)
    net, parts, advance = prepare(options, recordings, excerpt_s, steps)
    facts = {"operator": options.operator, "causal": options.causal}
    facts |= {"excerpt_s": excerpt_s, "rate": options.rate, "seed": options.seed}
    facts |= {"recordings": [str(path) for path in options.recordings]}
    run(folder, parts, advance, steps, seed=options.seed, facts=facts)
    if options.ship:
        print(ship(options.operator, options.causal, options.out))
    return net


def check(options: Options) -> None:
    """Refuse, before any work, what cannot be done."""
    if options.smoke and options.ship:
        raise BadInput("--ship is for a network that is trained; --smoke takes three steps only")
    operator(options.operator, 1000, options.causal)
    check_number("--cpu-minutes", options.cpu_minutes, 0, 10_000, above=True)
    check_number("--excerpt-s", options.excerpt_s, 1, 600)
    check_number("--rate", options.rate, 0, 1, above=True)
    check_seed(options.seed)
    if options.steps is not None:
        check_count("--steps", options.steps)
    check_folder(folder_of(options))


def folder_of(options: Options) -> Path:
    out = options.out / "smoke" if options.smoke else options.out
    return out / run_name(options.operator, options.causal)


def prepare(
    options: Options, recordings: Recordings, excerpt_s: float, steps: int
) -> tuple[Restorer, dict[str, Part], Callable[[int], dict[str, float]]]:
    """Make the network, all that learns, and one step."""
    seed_everything(options.seed, 1 << 31)
    net = Restorer(causal=options.causal)
    optimizer = optimizer_for(net)
    samples = round(RATE * excerpt_s)
    attend = operator(options.operator, 1 + samples // HOP, options.causal)

    def advance(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * options.rate * warm_up_cosine(step, steps, WARM_UP)
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
    """Make an optimizer in which the sharpness of the attention learns five times faster."""
    sharpness = [net.log_sharpness]
    others = [p for name, p in net.named_parameters() if name != "log_sharpness"]
    groups = [{"params": others, "factor": 1.0}, {"params": sharpness, "factor": 5.0}]
    return torch.optim.Adam(groups, betas=(0.9, 0.98))


def steps_in(options: Options, recordings: Recordings, folder: Path, trial: int = 12) -> int:
    """Measure once for a folder how many steps fit into the time; keep it in steps.json."""
    path = folder / "steps.json"
    wanted = {k: str(v) for k, v in asdict(options).items() if k not in ("out", "ship")}
    if path.is_file():
        kept = fields(read_json(path), {"steps": int, "options": dict}, str(path))
        if kept["options"] == wanted:
            return number(kept["steps"], f"the field 'steps' of {path}", 1, 10**9)
    _, _, advance = prepare(options, recordings, options.excerpt_s, 1000)
    seconds = []
    for step in range(trial):
        seed_everything(options.seed, step)
        start = time.process_time()
        advance(step)
        seconds.append(time.process_time() - start)
    second = sorted(seconds[2:])[len(seconds[2:]) // 2]
    steps = max(1, round(60 * options.cpu_minutes / second))
    write_json(path, {"steps": steps, "step_s": second, "options": wanted})
    return steps


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
