"""What is compared: the trained networks with each attention, and two ways without a network.

Shapes: b recordings, n samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from examples.audio.gaps import gaps_in
from examples.audio.model import Restorer, across_gaps
from examples.audio.operators import operator
from examples.audio.restoring import fill, restore
from examples.audio.spectrum import HOP, confidence, known_frames, log_bands, spectrum
from examples.audio.weights import trained

Restore = Callable[[Tensor, Tensor, bool], Tensor]  # wave, known, clean -> wave


@dataclass(frozen=True)
class Method:
    """One way to restore a recording."""

    label: str
    restore: Restore


def with_network(label: str, net: Restorer, attention: str) -> Method:
    def restored(wave: Tensor, known: Tensor, clean: bool) -> Tensor:
        attend = operator(attention, 1 + wave.shape[1] // HOP, net.causal)
        return restore(net, attend, wave, known, clean).wave

    return Method(label, restored)


def all_methods(runs: Path) -> list[Method]:
    """List each attention in the network that was trained with it, and the baselines.

    Raises:
        BadInput: A network has not been trained.
    """
    gpa = trained("gpa", False, runs)
    return [
        Method("straight line", lambda wave, known, clean: straight_line(wave, known)),
        Method("interpolated spectrum", lambda wave, known, clean: interpolated(wave, known)),
        with_network("nothing", trained("nothing", False, runs), "nothing"),
        with_network("window", trained("window", False, runs), "window"),
        with_network("full", trained("full", False, runs), "full"),
        with_network("GPA", gpa, "gpa"),
        with_network("GPA's network, full at work", gpa, "full"),
        with_network("GPA, causal", trained("gpa", True, runs), "gpa"),
    ]


def named_methods(attentions: tuple[str, ...], runs: Path) -> list[Method]:
    """List attentions by name, each in the network that was trained with it.

    Raises:
        BadInput: A network has not been trained.
    """
    return [with_network(name, trained(name, False, runs), name) for name in attentions]


def straight_line(wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Draw a line from the last sample before a gap to the first after it."""
    return across_gaps(wave[:, None], known, causal=False)[:, 0]


def interpolated(wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Interpolate the levels of the spectrum across the gaps, with phases that agree."""
    bands = log_bands(spectrum(wave))
    bands = across_gaps(bands, known_frames(confidence(known)), causal=False)
    out = wave.clone()
    for channel in range(len(wave)):
        for gap in gaps_in(known[channel]):
            fill(out[channel], gap, [], bands[channel], causal=False)
    return out
