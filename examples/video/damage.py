"""The damage that is put onto clips: spots that stay or pass, and frames that are lost.

Shapes: t frames.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Damage:
    """What is put onto a clip.

    Args:
        smudges: Spots that stay where they are on the picture, as dirt on the lens does.
        passers: Spots that cross it in a quarter of the clip.
        runs: Runs of frames that are lost.
        longest_run: Frames.
        spot: Least and largest diameter of a spot, in parts of the shorter side.
    """

    smudges: int = 2
    passers: int = 2
    runs: int = 2
    longest_run: int = 3
    spot: tuple[float, float] = (0.2, 0.32)


TRAINING = Damage(runs=1)
MOVING_CAMERA = Damage()
STILL_CAMERA = Damage(smudges=0, passers=6)  # behind a smudge there would be nothing to find


def damage(
    frames: int, side: int, what: Damage, generator: torch.Generator
) -> Bool[Tensor, "t 1 side side"]:
    """Draw damage, and mark what is still known."""
    known = torch.ones(frames, 1, side, side, dtype=torch.bool)
    for number in range(what.smudges + what.passers):
        known &= ~_spot(frames, side, what, number >= what.smudges, generator)
    for _ in range(what.runs):
        length, place = torch.rand(2, generator=generator).tolist()
        length = 1 + int(length * what.longest_run)
        first = 1 + int(place * max(1, frames - length - 1))
        known[first : min(first + length, frames - 1)] = False
    return known


def _spot(
    frames: int, side: int, what: Damage, moves: bool, generator: torch.Generator
) -> Bool[Tensor, "t 1 side side"]:
    width, height, x, y, dx, dy, begin = torch.rand(7, generator=generator).tolist()
    least, largest = what.spot
    radius = [side / 2 * (least + u * (largest - least)) for u in (width, height)]
    time = torch.linspace(0, 1, frames)[:, None, None]
    centre = [side * (0.15 + 0.7 * u) for u in (x, y)]
    if moves:
        begin = 0.75 * begin
        centre = [
            c + 2 * side * (u - 0.5) * (time - begin - 0.125) for c, u in zip(centre, (dx, dy))
        ]
    pixel = torch.arange(side) + 0.5
    x_off = (pixel[None, None, :] - centre[0]) / radius[0]
    y_off = (pixel[None, :, None] - centre[1]) / radius[1]
    inside = (x_off**2 + y_off**2 < 1).expand(frames, -1, -1)
    if moves:
        inside = inside & (time >= begin) & (time < begin + 0.25)
    return inside[:, None]
