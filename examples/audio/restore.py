"""Restore a recording.

    python -m examples.audio.restore                                damage one and restore it
    python -m examples.audio.restore in.wav out.wav                 gaps of exact silence are found
    python -m examples.audio.restore in.wav out.wav --gaps 3.2-3.5  or told, in seconds
    python -m examples.audio.restore in.wav out.wav --damage        put damage in, to see

Beside the file that is written lies a picture of the same name.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.damage import Damage, put_damage
from examples.audio.files import at_rate, format_of, read_recording, write_recording
from examples.audio.gaps import known_outside, silences, spans
from examples.audio.metrics import log_spectral_distance_db, sdr_db, sdr_of_gaps_db
from examples.audio.model import Restorer
from examples.audio.operators import operator
from examples.audio.picture import draw
from examples.audio.recordings import HELD_OUT, MissingRecordingError
from examples.audio.restoring import Restored, restore
from examples.audio.spectrum import HOP, RATE
from examples.audio.weights import trained


@dataclass(frozen=True)
class Options:
    """Restore a recording by copying from elsewhere in it."""

    recording: Annotated[str, tyro.conf.Positional] = "film music loop"
    """Any file that soundfile reads; or a held-out recording by name, which is damaged first."""
    out: Annotated[Path, tyro.conf.Positional] = Path("runs/audio/restored.wav")
    """What is written: wav, flac or ogg, at the rate and with the channels of the recording."""
    gaps: tuple[str, ...] = ()
    """Gaps, each as START-END in seconds; without any, stretches of exact silence are gaps.

    Not with --damage.
    """
    damage: bool = False
    """Put gaps in first; the truth is known then, and figures are printed."""
    noise_db: float | None = None
    """With --damage, noise besides, so far below the recording."""
    clip: float = 1.0
    """With --damage, peaks are cut off besides, at this share of the highest."""
    clean: bool = False
    """Take noise and clipping away, outside the gaps too; nothing above 8 kHz changes."""
    operator: str = "gpa"
    """gpa, window, full or nothing; all but gpa have to be trained first."""
    causal: bool = False
    """Never look ahead, as in a stream."""
    runs: Path = Path("runs/audio")
    """Folder of trained networks."""
    seed: int = 0
    """Of the damage."""


def main(options: Options) -> None:
    try:
        run(options)
    except (ValueError, OSError, MissingRecordingError) as error:
        sys.exit(f"error: {error}")


def run(options: Options) -> None:
    torch.set_flush_denormal(True)
    format_of(options.out)  # a wrong ending is told before any work
    check_together(options)
    net = trained(options.operator, options.causal, options.runs)
    if options.recording in HELD_OUT:
        run_damaged(options, net, HELD_OUT[options.recording]()[None])
    elif options.damage:
        wave, rate = read_recording(Path(options.recording))
        run_damaged(options, net, at_rate(wave, rate, RATE))
    else:
        run_given(options, net, Path(options.recording))


def check_together(options: Options) -> None:
    """Options that would be ignored are refused."""
    damaged = options.damage or options.recording in HELD_OUT
    if damaged and options.gaps:
        raise ValueError(f"--gaps cannot be told: those of {options.recording} are drawn")
    if not damaged and (options.noise_db is not None or options.clip != 1.0):
        raise ValueError(
            f"--noise-db and --clip need --damage; without it {options.recording} is taken as it is"
        )


def run_damaged(options: Options, net: Restorer, wave: Float[Tensor, "b n"]) -> None:
    """Damage, restore, compare; at 16 kHz."""
    damage = Damage(clip=options.clip, noise_db=options.noise_db)
    generator = torch.Generator().manual_seed(options.seed)
    damaged = put_damage(wave, damage, generator)
    restored = timed(options, net, damaged.wave, damaged.known)
    write_recording(options.out, restored.wave, RATE)
    beside = options.out.with_stem(f"{options.out.stem}-damaged")
    write_recording(beside, damaged.wave, RATE)
    waves = {"damaged": damaged.wave, "restored": restored.wave, "true": damaged.true}
    draw_beside(options.out, waves, damaged.known, restored)
    for name in ("damaged", "restored"):
        print(f"{name}: {figures(waves[name], damaged.true, damaged.known)}")
    print(f"the damaged recording is {beside}")


def run_given(options: Options, net: Restorer, path: Path) -> None:
    """Restore what is damaged already; at the rate of the file."""
    given, rate = read_recording(path)
    samples = given.shape[1]
    gaps = spans(options.gaps, samples / rate) or silences(given, rate)
    if not gaps and not options.clean:
        raise ValueError(f"{path} has no gap of exact silence; tell where with --gaps START-END")
    wave = at_rate(given, rate, RATE)
    known = known_outside(gaps, wave.shape[1], RATE, widened_s=0.001).expand(wave.shape)
    wave = wave * known
    restored = timed(options, net, wave, known)
    filled = at_rate(restored.wave, RATE, rate)[:, :samples]
    changed = at_rate((restored.wave - wave) * known, RATE, rate)[:, :samples]
    out = torch.where(known_outside(gaps, samples, rate), given + changed, filled)
    write_recording(options.out, out, rate)
    draw_beside(options.out, {"damaged": wave, "restored": restored.wave}, known, restored)


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
    """The first channel."""
    picture = out.with_suffix(".png")
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
    main(tyro.cli(Options))
