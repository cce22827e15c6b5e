"""Restore a recording.

    python -m examples.audio.restore                                damage one and restore it
    python -m examples.audio.restore in.wav out.wav                 sound cut out is found
    python -m examples.audio.restore in.wav out.wav --gaps 3.2-3.5  or told, in seconds
    python -m examples.audio.restore in.wav out.wav --dry-run       say what would change
    python -m examples.audio.restore in.wav out.wav --damage        put damage in, to see

A picture of the same name is written beside the recording. The input is never written to.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.damage import Damage, put_damage
from examples.audio.files import (
    at_rate,
    check_writable,
    format_of,
    read_recording,
    write_recording,
)
from examples.audio.gaps import gaps_in, known_outside, silences, spans
from examples.audio.metrics import log_spectral_distance_db, sdr_db, sdr_of_gaps_db
from examples.audio.model import Restorer
from examples.audio.operators import operator
from examples.audio.picture import draw
from examples.audio.recordings import HELD_OUT
from examples.audio.restoring import Restored, restore
from examples.audio.spectrum import HOP, RATE
from examples.audio.weights import trained
from examples.common.commands import check_number, check_seed, command
from examples.common.files import check_not_input, check_output
from examples.common.untrusted import BadInput

LISTED = 8  # gaps that are named before anything is written


@dataclass(frozen=True)
class Options:
    """Restore a recording by copying from elsewhere in it."""

    recording: Annotated[str, tyro.conf.Positional] = "film music loop"
    """Any file that soundfile reads; or a held-out recording by name, which is damaged first."""
    out: Annotated[Path, tyro.conf.Positional] = Path("runs/audio/restored.wav")
    """What is written: wav, flac or ogg, at the rate and with the channels of the recording."""
    gaps: tuple[str, ...] = ()
    """Gaps, each as START-END in seconds; without any, stretches of exact silence that cut off the
    sound on both sides are gaps.

    Not with --damage.
    """
    dry_run: bool = False
    """Say what would change, and write nothing."""
    damage: bool = False
    """Put gaps in first; the truth is known then, and figures are printed."""
    noise_db: float | None = None
    """With --damage, noise besides, so far below the recording."""
    clip: float = 1.0
    """With --damage, peaks are cut off besides, at this share of the highest."""
    clean: bool = False
    """Take noise and clipping away, outside the gaps too; nothing above 8 kHz changes."""
    operator: str = "gpa"
    """gpa, window, full or nothing; all but gpa have to be trained first, see --runs."""
    causal: bool = False
    """Never look ahead, as in a stream."""
    runs: Path | None = None
    """Folder of networks that you trained, runs/audio say; without it, the shipped one is used."""
    seed: int = 0
    """Of the damage."""


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check(options)
    net = trained(options.operator, options.causal, options.runs)
    if options.recording in HELD_OUT:
        run_damaged(options, net, HELD_OUT[options.recording]()[None])
    elif options.damage:
        wave, rate = read_recording(Path(options.recording))
        run_damaged(options, net, at_rate(wave, rate, RATE))
    else:
        run_given(options, net, Path(options.recording))


def check(options: Options) -> None:
    """Refuse, before any work, what cannot be done and options that would be ignored."""
    operator(options.operator, 1000, options.causal)
    check_seed(options.seed)
    check_number("--clip", options.clip, 0, 1, above=True)
    if options.noise_db is not None:
        check_number("--noise-db", options.noise_db, -20, 120)
    damaged = options.damage or options.recording in HELD_OUT
    if damaged and options.gaps:
        raise BadInput(f"--gaps cannot be told: those of {options.recording} are drawn")
    if not damaged and (options.noise_db is not None or options.clip != 1.0):
        raise BadInput(
            f"--noise-db and --clip need --damage; without it {options.recording} is taken as it is"
        )
    check_outputs(options)


def check_outputs(options: Options) -> None:
    """Refuse outputs that cannot be written, or of which one is the input."""
    format_of(options.out)
    given = None if options.recording in HELD_OUT else Path(options.recording)
    for path in (options.out, damaged_beside(options.out), picture_beside(options.out)):
        check_output(path)
        check_not_input(path, given)


def damaged_beside(out: Path) -> Path:
    return out.with_stem(f"{out.stem}-damaged")


def picture_beside(out: Path) -> Path:
    return out.with_suffix(".png")


def run_damaged(options: Options, net: Restorer, wave: Float[Tensor, "b n"]) -> None:
    """Damage, restore and compare, at 16 kHz."""
    check_writable(options.out, len(wave), RATE)
    damage = Damage(clip=options.clip, noise_db=options.noise_db)
    generator = torch.Generator().manual_seed(options.seed)
    damaged = put_damage(wave, damage, generator)
    beside = damaged_beside(options.out)
    gaps = [(start / RATE, end / RATE) for start, end in gaps_in(damaged.known[0])]
    if announced(options, gaps, wave.shape[1] / RATE, (beside,)):
        return
    restored = timed(options, net, damaged.wave, damaged.known)
    write_recording(options.out, restored.wave, RATE)
    write_recording(beside, damaged.wave, RATE)
    waves = {"damaged": damaged.wave, "restored": restored.wave, "true": damaged.true}
    draw_beside(options.out, waves, damaged.known, restored)
    for name in ("damaged", "restored"):
        print(f"{name}: {figures(waves[name], damaged.true, damaged.known)}")
    print(f"the damaged recording is {beside}")


def run_given(options: Options, net: Restorer, path: Path) -> None:
    """Restore what is damaged already, at the rate of the file."""
    given, rate = read_recording(path)
    check_writable(options.out, len(given), rate)
    samples = given.shape[1]
    gaps = spans(options.gaps, samples / rate) or found(path, given, rate, options.clean)
    if announced(options, gaps, samples / rate):
        return
    wave = at_rate(given, rate, RATE)
    known = known_outside(gaps, wave.shape[1], RATE, widened_s=0.001).expand(wave.shape)
    wave = wave * known
    restored = timed(options, net, wave, known)
    filled = at_rate(restored.wave, RATE, rate)[:, :samples]
    changed = at_rate((restored.wave - wave) * known, RATE, rate)[:, :samples]
    out = torch.where(known_outside(gaps, samples, rate), given + changed, filled)
    write_recording(options.out, out, rate)
    draw_beside(options.out, {"damaged": wave, "restored": restored.wave}, known, restored)


def found(
    path: Path, wave: Float[Tensor, "b n"], rate: int, clean: bool
) -> list[tuple[float, float]]:
    """Find the gaps that can be told from pauses; print how many pauses there are."""
    silent = silences(wave, rate)
    if not silent.gaps and not clean:
        raise BadInput(
            f"{path} has no gap, a silence that cuts off the sound on both sides, and is left as "
            f"it is; {len(silent.pauses)} other silences count as pauses: name what is a gap by "
            "--gaps START-END"
        )
    if silent.pauses:
        print(f"{len(silent.pauses)} other silences count as pauses and are left as they are")
    return silent.gaps


def announced(
    options: Options,
    gaps: list[tuple[float, float]],
    length_s: float,
    more: tuple[Path, ...] = (),
) -> bool:
    """Say what will be changed and written; return True if that is all that is wanted."""
    named = ", ".join(f"{start:.2f}-{end:.2f} s" for start, end in gaps[:LISTED])
    named += f" and {len(gaps) - LISTED} more" if len(gaps) > LISTED else ""
    share = sum(end - start for start, end in gaps) / length_s
    if gaps:
        print(f"to be filled: {len(gaps)} gaps, {share:.1%} of the recording: {named}")
    if options.clean:
        print("to be changed everywhere: noise and clipping")
    files = [options.out, *more, picture_beside(options.out)]
    print(f"to be written: {', '.join(map(str, files))}")
    if options.dry_run:
        print("nothing was written, as --dry-run asks")
    return options.dry_run


def timed(
    options: Options, net: Restorer, wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]
) -> Restored:
    attend = operator(options.operator, 1 + wave.shape[1] // HOP, options.causal)
    start = time.perf_counter()
    restored = restore(net, attend, wave, known, options.clean)
    seconds, copies = time.perf_counter() - start, restored.copies[0]
    print(
        f"{len(copies)} gaps in {wave.shape[1] / RATE:.1f} s of sound, "
        f"{sum(len(some) > 0 for some in copies)} filled by copies, in {seconds:.1f} s"
    )
    return restored


def draw_beside(
    out: Path, waves: dict[str, Tensor], known: Bool[Tensor, "b n"], restored: Restored
) -> None:
    """Draw the first channel beside the recording."""
    picture = picture_beside(out)
    draw(picture, {k: x[0] for k, x in waves.items()}, known[0], restored.copies[0])
    print(f"{out}, {picture}")


def figures(
    wave: Float[Tensor, "b n"], true: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]
) -> str:
    distance = log_spectral_distance_db(wave, true, known)
    return (
        f"in the gaps, SDR {sdr_of_gaps_db(wave, true, known):.1f} dB (mean over gaps) and "
        f"log-spectral distance {distance:.1f} dB; "
        f"everywhere, SDR {sdr_db(wave, true, torch.ones_like(known)):.1f} dB"
    )


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
