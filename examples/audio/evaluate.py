"""Compare the attentions on held-out recordings.

    python -m examples.audio.evaluate

Needs the networks of all attentions in `runs/audio`. Writes held_out.md (gaps only), damaged.md
(gaps, noise and clipping), cost.md, ten_minutes.md and the same as JSON into results/, and the
tables into README.md. A smoke run writes into runs/audio/smoke/results only.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from examples.audio.cost import attention_costs, ten_minutes
from examples.audio.damage import Damage, Damaged, put_damage
from examples.audio.methods import Method, all_methods, named_methods
from examples.audio.metrics import log_spectral_distance_db, sdr_db, sdr_of_gaps_db
from examples.audio.recordings import HELD_OUT, REAL, MissingRecordingError
from examples.audio.report import table, write
from examples.audio.spectrum import RATE
from examples.audio.weights import trained
from examples.common.commands import check_count, command, ignore_interrupts
from examples.common.files import check_folder
from examples.common.tables import quote
from examples.common.untrusted import BadInput

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("runs/audio/smoke/results")

Row = dict[str, Any]
Table = tuple[list[str], list[Row]]  # what is to be said of it, rows
Recordings = dict[str, Float[Tensor, " _"]]


@dataclass(frozen=True)
class Options:
    """Compare the attentions on held-out recordings."""

    runs: Path = Path("runs/audio")
    """Folder of the trained networks; runs/audio/smoke has those of smoke runs."""
    out: Path | None = None
    """Folder of the tables, in place of results/."""
    seeds: int = 2
    """How often each recording is damaged anew."""
    tables: tuple[Literal["held_out", "damaged", "cost", "ten_minutes"], ...] = (
        "held_out",
        "damaged",
        "cost",
        "ten_minutes",
    )
    """Which to make."""
    attentions: tuple[str, ...] = ()
    """Of `--operator` of the training: compare the networks trained with these, and nothing else;
    needs `--out`."""
    workers: int = 1
    """Processes that share the work, one thread each."""
    smoke: bool = False
    """Seconds of sound, damaged once: shows that the program runs."""


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check_count("--seeds", options.seeds, 1, 1000)
    check_count("--workers", options.workers, 1, 64)
    if options.attentions and options.out is None:
        raise BadInput("--attentions makes tables of some of them only; name their folder by --out")
    out = options.out or (SMOKE_RESULTS if options.smoke else RESULTS)
    check_folder(out)
    if options.workers > 1:
        torch.set_num_threads(1)  # workers are forked, which threads do not survive
    for name in options.tables:
        about, rows = TABLES[name](options)
        print(write(out, name, about, rows))
        if out == RESULTS and not options.smoke:
            quote(RESULTS.parent / "README.md", name, table(rows))


def gaps_table(options: Options) -> Table:
    """Compare all methods on recordings with gaps alone."""
    recordings, about = held_out(options)
    seeds = range(1 if options.smoke else options.seeds)
    judge = partial(judged, recordings=recordings, damage=Damage(), seeds=seeds)
    return [GAPS, *about], each(judge, methods_of(options), options.workers)


def damage_table(options: Options) -> Table:
    """Compare the attentions, each with its own network, under noise and clipping too."""
    recordings, about = held_out(options)
    damage = Damage(clip=0.5, noise_db=20.0)
    methods = [
        method for method in methods_of(options) if method.label in (*COMPARED, *options.attentions)
    ]
    judge = partial(judged, recordings=recordings, damage=damage, seeds=range(1), clean=True)
    return [HEAVY, *about], each(judge, methods, options.workers)


def methods_of(options: Options) -> list[Method]:
    if options.attentions:
        return named_methods(options.attentions, options.runs)
    return all_methods(options.runs)


def each(judge: Callable[[Method], Row], methods: list[Method], workers: int) -> list[Row]:
    """Judge each method; several workers are processes that share what is loaded."""
    if workers == 1:
        return [judge(method) for method in tqdm(methods)]
    numbers = range(len(methods))
    with get_context("fork").Pool(workers, share, (judge, methods)) as pool:
        return list(tqdm(pool.imap(judge_shared, numbers, chunksize=1), total=len(methods)))


def share(judge: Callable[[Method], Row], methods: list[Method]) -> None:
    """Keep in a worker what it was forked with, which cannot be sent."""
    ignore_interrupts()
    SHARED.update(judge=judge, methods=methods)


def judge_shared(number: int) -> Row:
    return SHARED["judge"](SHARED["methods"][number])


SHARED: dict[str, Any] = {}


def cost_table(options: Options) -> Table:
    lengths = (1.0, 2.0) if options.smoke else (24.0, 60.0, 600.0)
    return [COST], attention_costs(trained("gpa", False, options.runs), lengths)


def long_table(options: Options) -> Table:
    return [LONG], [ten_minutes(options.runs, 2.0 if options.smoke else 600.0)]


TABLES = {
    "held_out": gaps_table,
    "damaged": damage_table,
    "cost": cost_table,
    "ten_minutes": long_table,
}
COMPARED = ("nothing", "window", "full", "GPA")

GAPS = (
    "Held-out recordings with gaps of 20 to 500 ms, 12 % of the time. In each cell: "
    "signal-to-distortion ratio, dB, higher is better (mean over the gaps, each brought to -10 to "
    "35) / log-spectral distance in the gaps, dB, lower is better; means over the damages drawn. "
    "`spread` is between the damages, largest less smallest. The networks of `nothing`, `window`, "
    "`full`, `GPA` and `GPA, causal` were trained for equal processor times."
)
HEAVY = (
    "The same with white noise 20 dB below the recording and peaks cut off at half their height; "
    "noise and clipping are taken away, too. `everywhere` is the signal-to-distortion ratio of the "
    "whole recording, mean over the recordings; before restoring it is in the column `damaged`."
)
COST = (
    "One call of the attention inside the network, two heads, without gradients. `affinities` are "
    "what it would hold if it kept them all; `full` is torch's fused kernel, which does not, and "
    "whose time grows with the square; - where that is minutes."
)
LONG = "A recording of ten minutes, restored with GPA in a process of its own."


def held_out(options: Options) -> tuple[Recordings, list[str]]:
    """Load the recordings that are at hand, and say which are missing."""
    recordings, missing = {}, []
    for name, make in HELD_OUT.items():
        try:
            recordings[name] = make()
        except MissingRecordingError as error:
            missing.append(f"{name} left out: {error}")
    if options.smoke:
        recordings = {name: x[RATE : 3 * RATE] for name, x in recordings.items()}
    lengths = ", ".join(f"{name} {len(x) / RATE:.0f} s" for name, x in recordings.items())
    return recordings, [f"Recordings: {lengths}. Real ones: {', '.join(REAL)}.", *missing]


def judged(
    method: Method, recordings: Recordings, damage: Damage, seeds: range, clean: bool = False
) -> Row:
    """Judge one method on all recordings: a row of the table."""
    row: Row = {"attention": method.label}
    real, whole, before = [], [], []
    for name, wave in recordings.items():
        figures = []
        for seed in seeds:
            damaged = put_damage(wave[None], damage, torch.Generator().manual_seed(100 + seed))
            restored = method.restore(damaged.wave, damaged.known, clean)
            figures.append(in_gaps(restored, damaged))
            everywhere = torch.ones_like(damaged.known)
            whole.append(sdr_db(restored, damaged.true, everywhere))
            before.append(sdr_db(damaged.wave, damaged.true, everywhere))
        row[name] = [statistics.mean(column) for column in zip(*figures)]
        real += [figures] if name in REAL else []
    if real:
        by_seed = [
            [statistics.mean(x) for x in zip(*(f[i] for f in real))] for i in range(len(seeds))
        ]
        row["real ones"] = [statistics.mean(column) for column in zip(*by_seed)]
        if len(seeds) > 1:
            row["spread"] = [max(column) - min(column) for column in zip(*by_seed)]
    if clean:
        row |= {"everywhere": statistics.mean(whole), "damaged": statistics.mean(before)}
    return row


def in_gaps(restored: Float[Tensor, "1 n"], damaged: Damaged) -> tuple[float, float]:
    return (
        sdr_of_gaps_db(restored, damaged.true, damaged.known),
        log_spectral_distance_db(restored, damaged.true, damaged.known),
    )


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
