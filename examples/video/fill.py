"""Fill a clip: holes and missing frames in, an mp4 and a contact sheet out.

    .venv/bin/python -m examples.video.fill                                  a held-out clip
    .venv/bin/python -m examples.video.fill --clip mine.mp4 --holes holes.png
    .venv/bin/python -m examples.video.fill --clip mine.mp4 --missing 10-12 40

Writes into `runs/video`: filled.mp4, damaged.mp4, sheet.png.
"""

import re
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool
from torch import Tensor

from examples.common.commands import check_count, command
from examples.common.files import check_not_input, check_output
from examples.common.untrusted import BadInput, read_picture
from examples.video.attention import KAPPA, gpa
from examples.video.clips import (
    FEWEST,
    LARGEST,
    MOST_FRAMES,
    SMALLEST,
    Clip,
    read_clip,
    write_clip,
)
from examples.video.data import HELD_OUT, Problem, held_out_problem
from examples.video.metrics import scores
from examples.video.model import Filling, FillNet, Sketch
from examples.video.sheet import draw_sheet
from examples.video.weights import SHIPPED, load_net


@dataclass(frozen=True)
class Options:
    """Fill the holes and the missing frames of a clip."""

    clip: Path | None = None
    """A clip of your own; without one, a held-out one is damaged and filled."""
    holes: Path | None = None
    """A picture of the frame, white where the hole is, in every frame."""
    missing: tuple[str, ...] = ()
    """Frames that are lost, from 0: numbers, and runs such as 10-12."""
    side: int = 128
    """Pixels that the shorter side is brought to."""
    first: int = 0
    """Frames to leave out at the start."""
    frames: int = 64
    """Frames to fill."""
    kappa: int = KAPPA
    """Blocks that each block of a hole reads."""
    weights: Path = SHIPPED
    """A trained network."""
    out: Path = Path("runs/video")
    """Folder of the results."""


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check(options)
    net = load_net(options.weights)
    clip, known = given(options) if options.clip else example(options)
    fill(options, net, clip, known)


def check(options: Options) -> None:
    """Refuse, before any work, what cannot be done."""
    check_count("--side", options.side, SMALLEST, LARGEST)
    check_count("--frames", options.frames, FEWEST, MOST_FRAMES)
    check_count("--first", options.first, 0)
    check_count("--kappa", options.kappa)
    for name in ("damaged.mp4", "filled.mp4", "sheet.png"):
        check_output(options.out / name)
        check_not_input(options.out / name, options.clip)
    if options.clip is None and (options.holes or options.missing):
        raise BadInput("--holes and --missing say what to fill in a clip: name it with --clip")
    if options.clip is not None and not (options.holes or options.missing):
        raise BadInput("there is nothing to fill: say what with --holes or --missing")


def fill(options: Options, net: FillNet, clip: Clip, known: Bool[Tensor, "t 1 h w"]) -> None:
    """Fill and write; the files take their places only when they are whole."""
    start = time.perf_counter()
    sketch = Sketch.of(clip.pixels, known)
    filling = fill_with(net, sketch, options.kappa)
    seconds = time.perf_counter() - start
    for name, pixels in (("damaged", sketch.frames), ("filled", filling.frames)):
        write_clip(options.out / f"{name}.mp4", as_clip(pixels, clip))
    truth = clip.pixels if options.clip is None else None
    draw_sheet(options.out / "sheet.png", net, sketch, filling, truth, options.kappa)
    print(f"{len(known)} frames of {known.shape[3]}x{known.shape[2]} in {seconds:.1f} s, ", end="")
    print(f"{float((~known).float().mean()):.1%} of them filled.")
    if truth is not None:
        found = scores(filling.frames, truth, known)
        print(f"In the holes: {found['psnr_db']:.2f} dB, SSIM {found['ssim']:.3f}.")
    print(
        f"The clip is {options.out / 'filled.mp4'}, the pictures are {options.out / 'sheet.png'}."
    )


@torch.no_grad()
def fill_with(net: FillNet, sketch: Sketch, kappa: int) -> Filling:
    return net(sketch, partial(gpa, kappa=kappa))


def as_clip(pixels: Tensor, like: Clip) -> Clip:
    return Clip((pixels.clamp(0, 1) * 255).round().byte(), like.times, like.time_base)


def example(options: Options) -> tuple[Clip, Bool[Tensor, "t 1 h w"]]:
    """Damage the first of the held-out clips, under a moving camera."""
    problem: Problem = held_out_problem(HELD_OUT[0], True, options.frames, options.side)
    frames = (problem.truth * 255).round().byte()
    return Clip(frames, tuple(range(len(frames))), Fraction(1, 25)), problem.known


def given(options: Options) -> tuple[Clip, Bool[Tensor, "t 1 h w"]]:
    """Read the clip of the user, and mark what is known of it."""
    assert options.clip is not None
    lost = [number for text in options.missing for number in frame_numbers(text)]
    clip = read_clip(options.clip, options.side, options.first, options.frames)
    count, _, height, width = clip.frames.shape
    known = torch.ones(count, 1, height, width, dtype=torch.bool)
    if options.holes is not None:
        known &= ~read_holes(options.holes, height, width)
    out_of = [number for number in lost if number >= count]
    if out_of:
        raise BadInput(f"--missing names frame {out_of[0]}; the clip has frames 0 to {count - 1}")
    known[lost] = False
    if known.all():
        raise BadInput("there is nothing to fill: --holes is black all over")
    if not known.any():
        raise BadInput("there is nothing to copy from: every pixel of every frame is a hole")
    return clip, known


FRAMES = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?")


def frame_numbers(text: str) -> range:
    """Parse '7' as frame 7, '10-12' as frames 10, 11 and 12."""
    first, _, last = text.partition("-")
    if not FRAMES.fullmatch(text) or int(last or first) < int(first):
        raise BadInput(f"--missing takes numbers of frames and runs such as 10-12; got {text!r}")
    return range(int(first), int(last or first) + 1)


def read_holes(path: Path, height: int, width: int) -> Bool[Tensor, "h w"]:
    """Mark where the picture is white."""
    grey = np.asarray(read_picture(path).convert("L").resize((width, height)))
    return torch.from_numpy(grey > 127)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
