"""The loop around every training: progress bar, TensorBoard, checkpoints, resume, a guard for NaN.

A step depends on its number alone: torch is seeded from (seed, step) before each, batches are drawn
from that, and rates follow from the number. So a run that was killed and resumed ends with the
same bits as one that was not. A run can be extended by more steps; from there on the rates follow
the longer plan.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from examples.common import checkpoints
from examples.common.checkpoints import Part
from examples.common.commands import DivergedError, Stopped, check_count, locked
from examples.common.untrusted import BadInput

LOG_EVERY = 20  # steps between points of the curves


def descend(
    optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], rate: float
) -> dict[str, float]:
    """Take a step of this rate down the sum of some losses, and return them."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {name: x.item() for name, x in terms.items()}


def run(
    folder: Path,
    parts: dict[str, Part],
    advance: Callable[[int], dict[str, float]],
    total_steps: int,
    *,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
    save_every_s: float = 60.0,
    pictures: Callable[[int], dict[str, Tensor]] | None = None,
    pictures_every: int = 500,
    writes: bool = True,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """Take the steps that are missing of `total_steps`.

    Args:
        folder: Holds checkpoints and curves; a run that is there already is continued.
        parts: Everything that learns or averages, by name.
        advance: One whole step, given its number from 0; returns figures to log, losses among them.
        facts: What the run was made with, as JSON; a checkpoint made with other facts is refused.
            The number of steps is kept with them under "steps" and may differ.
        save_every_s: Seconds between checkpoints.
        pictures: Pictures to show in TensorBoard, float (3, h, w) in 0 to 1.
        pictures_every: Steps between them.
        writes: False in all processes but one of a parallel training.
        prepare: Brings `parts` into the form that they had after so many steps, before those of a
            checkpoint are restored; for parts that change, as those of a network that grows.

    Raises:
        BadInput: The folder holds a run with other facts, one that has taken more steps, or only
            damaged checkpoints; or another process trains there.
        DivergedError: A figure is not finite; nothing bad was saved.
        Stopped: Ctrl-C; the step was finished and saved.
    """
    check_count("the number of steps", total_steps)
    facts = (facts or {}) | {"steps": total_steps}
    with locked(folder) if writes else nullcontext(), finishing_the_step() as stopping:
        first = resume(folder, parts, facts, prepare)
        if first == total_steps:
            return
        record = Record(folder, parts, facts, save_every_s, pictures, pictures_every)
        bar = tqdm(range(first, total_steps), initial=first, total=total_steps, disable=not writes)
        with record.writing(first) if writes else nullcontext():
            for step in bar:
                seed_everything(seed, step)
                figures = advance(step)
                check_finite(figures, step, folder)
                done, last = step + 1, step + 1 == total_steps or stopping.is_set()
                if writes:
                    record.add(done, figures, last, bar)
                if last:
                    break
        bar.close()
    if done < total_steps:
        raise Stopped(
            f"{folder} has {done} of {total_steps} steps saved; "
            "the same command continues from there"
        )


@dataclass
class Record:
    """What a run leaves in its folder: curves, pictures and checkpoints. Arguments as of `run`."""

    folder: Path
    parts: dict[str, Part]
    facts: dict[str, Any]
    save_every_s: float
    pictures: Callable[[int], dict[str, Tensor]] | None
    pictures_every: int

    @contextmanager
    def writing(self, first: int) -> Iterator[None]:
        """Open the curves, and forget what an interrupted run wrote there of later steps."""
        self.curves = SummaryWriter(str(self.folder / "curves"), purge_step=first)
        self.saved_at = time.monotonic()
        try:
            yield
        finally:
            self.curves.close()

    def add(self, done: int, figures: dict[str, float], last: bool, bar: tqdm) -> None:
        """Write what is due after so many steps; after the last one, everything is."""
        if last or done % LOG_EVERY == 0:
            bar.set_postfix({name: f"{x:.4g}" for name, x in figures.items()}, refresh=False)
            for name, x in figures.items():
                self.curves.add_scalar(name, x, done)
        if self.pictures and (last or done % self.pictures_every == 0):
            for name, picture in self.pictures(done).items():
                self.curves.add_image(name, picture.clamp(0, 1), done)
        if last or time.monotonic() - self.saved_at > self.save_every_s:
            keep(self.folder, done, self.parts, self.facts)
            self.saved_at = time.monotonic()


@contextmanager
def finishing_the_step() -> Iterator[threading.Event]:
    """Note the first Ctrl-C, so that a step can be finished and saved; the second one interrupts.

    Outside the main thread Python has no signals to handle, and the event is never set.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def note(*_: object) -> None:
        stopping.set()
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


def resume(
    folder: Path,
    parts: dict[str, Part],
    facts: dict[str, Any],
    prepare: Callable[[int], None] | None = None,
) -> int:
    """Restore the newest whole checkpoint, and return how many steps it had taken."""
    found = checkpoints.latest(folder)
    if found is None:
        return 0
    changed = sorted(
        k for k in facts | found.facts if k != "steps" and facts.get(k) != found.facts.get(k)
    )
    if changed:
        raise BadInput(
            f"{folder} holds a run with other options ({', '.join(changed)}); "
            "give those again or name another folder"
        )
    if found.step > facts["steps"]:
        raise BadInput(f"{folder} holds a run of {found.step} steps; {facts['steps']} are fewer")
    if prepare is not None:
        prepare(found.step)
    checkpoints.restore(parts, found.tensors)
    planned = found.facts.get("steps", facts["steps"])
    if planned != facts["steps"]:
        print(f"{folder}: planned for {planned} steps, from step {found.step} on {facts['steps']}")
    return found.step


def seed_everything(seed: int, step: int) -> None:
    torch.manual_seed((seed << 32) + step)


def check_finite(figures: dict[str, float], step: int, folder: Path) -> None:
    bad = [name for name, x in figures.items() if not math.isfinite(x)]
    if bad:
        raise DivergedError(
            f"step {step}: {', '.join(bad)} is not finite ({figures}); "
            f"{folder} keeps the last good checkpoint: lower the learning rate and run again"
        )


def keep(folder: Path, step: int, parts: dict[str, Part], facts: dict[str, Any]) -> None:
    """Save, unless a parameter or an optimizer's state has become infinite or NaN."""
    tensors = checkpoints.tensors_of(parts)
    bad = [name for name, x in tensors.items() if not bool(x.isfinite().all())]
    if bad:
        raise DivergedError(
            f"step {step}: {bad[0]} and {len(bad) - 1} others are not finite; "
            f"{folder} keeps the last good checkpoint"
        )
    checkpoints.save(folder, step, tensors, facts)
