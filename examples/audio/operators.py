"""The attentions that are compared, by name."""

from examples.common.attention import operator_of
from examples.common.untrusted import BadInput
from ndgpa import GPA, Full, Sequence
from ndgpa.operators import Neighborhood, NoAttention, Operator

DOWNSAMPLE, CELL, KAPPA = 4, 2, 12  # blocks of 32 ms in cells of 64 ms; 12 blocks read: 48 frames
WINDOW = 129  # frames that a window reads: 1.03 s
SAY_WHAT_THEY_READ = (GPA, Neighborhood, Full, NoAttention)  # which `candidates` needs
CAUSAL = (GPA, Full, NoAttention)


def space(frames: int) -> Sequence:
    return Sequence(frames, DOWNSAMPLE, CELL)


def operator(name: str, frames: int, causal: bool = False) -> Operator:
    """Make an attention for a recording of so many frames; features bring their temperature.

    Args:
        name: gpa, window, full, nothing, or a call such as `GPA(12, far=block)`.

    Raises:
        BadInput: There is no such attention, or no causal form of it.
    """
    names = {
        "gpa": f"GPA({KAPPA})",
        "window": f"Neighborhood({min(WINDOW, frames)})",
        "full": "Full()",
        "nothing": "NoAttention()",
    }
    made = operator_of(name, names, scale=1.0, causal=causal)
    if not isinstance(made, SAY_WHAT_THEY_READ):
        raise BadInput(
            f"--operator {name}: it is not known what it reads; expected GPA, Neighborhood, Full "
            "or NoAttention"
        )
    if causal and not isinstance(made, CAUSAL):
        raise BadInput(f"--operator {name} has no causal form here; expected GPA, full or nothing")
    return made
