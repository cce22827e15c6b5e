"""What attention costs as a recording grows, and what ten minutes of sound need in all."""

import resource
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.audio.damage import Damage, Damaged, put_damage
from examples.audio.metrics import sdr_of_gaps_db
from examples.audio.model import Question, Restorer
from examples.audio.operators import KAPPA, operator, space
from examples.audio.recordings import refrain
from examples.audio.restoring import restore
from examples.audio.spectrum import HOP, RATE
from examples.audio.weights import trained
from examples.common.commands import ignore_interrupts
from ndgpa.analysis import gpa_entries, peak_bytes

FULL_UP_TO_S = 60.0  # of sound: beyond, full attention takes minutes


def attention_costs(net: Restorer, lengths_s: tuple[float, ...]) -> list[dict[str, Any]]:
    """Measure GPA and full attention on the queries and keys of a recording; a row for each."""
    rows = []
    for length_s in lengths_s:
        damaged = long_recording(length_s)
        with torch.no_grad():
            question = net.ask(damaged.wave, damaged.known)[0]
        for name in ("gpa", "full"):
            if name == "gpa" or length_s <= FULL_UP_TO_S:
                rows.append(cost_of(name, question, length_s))
            else:
                rows.append(not_run(name, question, length_s))
    return rows


@torch.no_grad()
def cost_of(name: str, question: Question, length_s: float) -> dict[str, Any]:
    frames = question.known.shape[1]
    attend, structure = operator(name, frames), space(frames)

    def call() -> Tensor:
        return attend(
            question.query,
            question.key,
            question.value,
            structure,
            key_mask=question.known,
            query_mask=torch.ones_like(question.known),
        )

    peak = peak_bytes(call)
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    return {**not_run(name, question, length_s), "processor s": seconds, "peak MB": peak / 1e6}


def not_run(name: str, question: Question, length_s: float) -> dict[str, Any]:
    """Count the affinities that one call computes, 4 bytes each, without running it."""
    heads, frames = question.query.shape[1:3]
    entries = gpa_entries(space(frames), KAPPA).total if name == "gpa" else frames**2
    return {
        "sound s": length_s,
        "frames": frames,
        "attention": name,
        "affinities MB": heads * entries * 4 / 1e6,
    }


def ten_minutes(runs: Path, length_s: float = 600.0) -> dict[str, Any]:
    """Restore ten minutes in a process of its own, whose memory is the result."""
    with get_context("spawn").Pool(1, ignore_interrupts) as pool:
        return pool.apply(restore_long, (runs, length_s))


def restore_long(runs: Path, length_s: float) -> dict[str, Any]:
    damaged = long_recording(length_s)
    net = trained("gpa", False, runs)
    start = time.process_time()
    attend = operator("gpa", 1 + damaged.wave.shape[1] // HOP)
    restored = restore(net, attend, damaged.wave, damaged.known)
    return {
        "sound s": length_s,
        "samples": damaged.wave.shape[1],
        "gaps": len(restored.copies[0]),
        "SDR in the gaps dB": sdr_of_gaps_db(restored.wave, damaged.true, damaged.known),
        "processor s": time.process_time() - start,
        "process at most GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def long_recording(length_s: float) -> Damaged:
    """Repeat the refrain under noise 40 dB below it, and cut gaps."""
    samples, wave = round(length_s * RATE), refrain()
    wave = wave.repeat(samples // len(wave) + 1)[None, :samples]
    generator = torch.Generator().manual_seed(0)
    wave = wave + 5e-4 * torch.randn(wave.shape, generator=generator)
    return put_damage(wave, Damage(), generator)
