"""The attentions that are compared, by name."""

from examples.common.untrusted import BadInput
from ndgpa import GPA, Full, Sequence
from ndgpa.operators import Neighborhood, NoAttention, Operator

NAMES = ("gpa", "window", "full", "nothing")
DOWNSAMPLE, CELL, KAPPA = 4, 2, 12  # blocks of 32 ms in cells of 64 ms; 12 blocks read: 48 frames
WINDOW = 129  # frames that a window reads: 1.03 s


def space(frames: int) -> Sequence:
    return Sequence(frames, DOWNSAMPLE, CELL)


def operator(name: str, frames: int, causal: bool = False) -> Operator:
    """Make an attention for a recording of so many frames; features bring their temperature.

    Raises:
        BadInput: There is no such attention, or no causal form of it.
    """
    if causal and name == "window":
        raise BadInput("--operator window has no causal form here; expected gpa, full or nothing")
    if name == "gpa":
        return GPA(KAPPA, scale=1.0, causal=causal)
    if name == "window":
        return Neighborhood(min(WINDOW, frames), scale=1.0)
    if name == "full":
        return Full(scale=1.0, causal=causal)
    if name == "nothing":
        return NoAttention()
    raise BadInput(f"unknown attention {name!r}; expected one of {', '.join(NAMES)}")
