"""What a level of the generator gives to whatever looks at the source there, and gets back."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from ndgpa import Image
from ndgpa.operators import Operator


@dataclass(frozen=True)
class Level:
    """What one attention was asked and what it copied, for losses, measures and pictures."""

    size: tuple[int, int]  # pixels
    copied: Float[Tensor, "b 3 h w"]  # source pixels, averaged as the attention weighs them
    query: Float[Tensor, "b k n d"]  # k heads
    key: Float[Tensor, "b k n d"]
    structure: Image
    operator: Operator

    def split(self, counts: list[int]) -> "list[Level]":
        """Split the samples into groups of these sizes."""
        parts = zip(*(x.split(counts) for x in (self.copied, self.query, self.key)), strict=True)
        return [replace(self, copied=copied, query=query, key=key) for copied, query, key in parts]


@dataclass(frozen=True)
class Given:
    """The features of both sides at one level, and where they come from."""

    target: Float[Tensor, "b c h w"]
    source: Float[Tensor, "b c h w"]
    pixels: Float[Tensor, "b 3 h w"]  # of the source
    source_maps: Float[Tensor, "b 18 k l"]  # heat maps of the key points, at the finest size
    target_maps: Float[Tensor, "b 18 k l"]
    handed: Any  # down by the next coarser level; None where there is none
    points: tuple[Float[Tensor, "b 18 3"], Float[Tensor, "b 18 3"]] | None = None  # see body.py
    told: Float[Tensor, "b 9 k l"] | None = None  # of the surface in the source; see surface.py


@dataclass(frozen=True)
class Carried:
    """The features after the source was looked at."""

    target: Float[Tensor, "b c h w"]
    source: Float[Tensor, "b c h w"]
    copied: Float[Tensor, "b 3 h w"] | None = None  # source pixels where the target has them
    handed: Any = None  # to the next finer level
    level: Level | None = None  # of an attention


class Carrier(Protocol):
    """Brings what the source shows to where the target has it, at one level."""

    def active(self, coarse_only: bool) -> bool:
        """Tell whether this level looks at the source at all.

        Args:
            coarse_only: Leave out attentions that select.
        """

    def __call__(self, given: Given) -> Carried:
        """Look at the source."""
