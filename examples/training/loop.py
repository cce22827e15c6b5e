"""The loop around every training: progress bar, TensorBoard, checkpoints, resume, a guard for NaN.

A step depends on its number alone: torch is seeded from (seed, step) before each, batches are drawn
from that, and rates follow from the number. So a run that was killed and resumed ends with the
same bits as one that was not.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from examples.training import checkpoints
from examples.training.checkpoints import Part

LOG_EVERY = 20  # steps between points of the curves


class DivergedError(RuntimeError):
    """A loss or a parameter is no longer a number; the last good checkpoint stands."""


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
) -> None:
    """Take the steps that are missing of `total_steps`.

    Args:
        folder: Holds checkpoints and curves; a run that is there already goes on.
        parts: Everything that learns or averages, by name.
        advance: One whole step, given its number from 0; returns figures to log, losses among them.
        facts: What the run was made with, as JSON; a checkpoint made with other facts is refused.
        save_every_s: Seconds between checkpoints.
        pictures: Pictures to show in TensorBoard, float (3, h, w) in 0 to 1.
        pictures_every: Steps between them.
        writes: False in all processes but one of a parallel training.

    Raises:
        ValueError: The folder holds a run with other facts.
        DivergedError: A figure is not finite; nothing bad was saved.
    """
    facts = facts or {}
    first = resume(folder, parts, facts)
    if first >= total_steps:
        return
    curves = SummaryWriter(str(folder / "curves"), purge_step=first) if writes else None
    saved_at = time.monotonic()
    bar = tqdm(range(first, total_steps), initial=first, total=total_steps, disable=not writes)
    for step in bar:
        seed_everything(seed, step)
        figures = advance(step)
        check_finite(figures, step, folder)
        done = step + 1
        if curves is None:
            continue
        if done % LOG_EVERY == 0 or done == total_steps:
            bar.set_postfix({name: f"{x:.4g}" for name, x in figures.items()}, refresh=False)
            for name, x in figures.items():
                curves.add_scalar(name, x, done)
        if pictures and (done % pictures_every == 0 or done == total_steps):
            for name, picture in pictures(done).items():
                curves.add_image(name, picture.clamp(0, 1), done)
        if done == total_steps or time.monotonic() - saved_at > save_every_s:
            keep(folder, done, parts, facts)
            saved_at = time.monotonic()
    if curves is not None:
        curves.close()


def resume(folder: Path, parts: dict[str, Part], facts: dict[str, Any]) -> int:
    """Restore the newest whole checkpoint, and return how many steps it had taken."""
    found = checkpoints.latest(folder)
    if found is None:
        return 0
    if found.facts != facts:
        changed = sorted(k for k in facts | found.facts if facts.get(k) != found.facts.get(k))
        raise ValueError(
            f"{folder} holds a run with other options ({', '.join(changed)}); "
            "give those again or name another folder"
        )
    checkpoints.restore(parts, found.tensors)
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
    """Save, unless a parameter or an optimiser's state has become infinite or NaN."""
    tensors = checkpoints.tensors_of(parts)
    bad = [name for name, x in tensors.items() if not bool(x.isfinite().all())]
    if bad:
        raise DivergedError(
            f"step {step}: {bad[0]} and {len(bad) - 1} others are not finite; "
            f"{folder} keeps the last good checkpoint"
        )
    checkpoints.save(folder, step, tensors, facts)
