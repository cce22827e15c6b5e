"""A drawn video of any length, of which each process draws its own sites alone.

A texture drifts, so that what is missing at one time is seen at another. Features of a site are the
colours around it with what is missing, which of them are known, and where and when it is.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AROUND = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
WAVES = 12
FEATURES = len(AROUND) * 4 + 6


@dataclass(frozen=True)
class Film:
    """Where sites of a video are, and what is seen there.

    Args:
        shape: Frames, height and width.
        missing: The share of pixels that are hidden.
    """

    shape: tuple[int, int, int]
    missing: float = 0.3
    seed: int = 0

    def at(self, sites: Int[Tensor, " m"], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw some sites of the film of a step.

        Returns:
            Features (m, FEATURES), true colours (m, 3), and which sites are hidden (m,).
        """
        time, row, column = (x.double() for x in torch.unravel_index(sites, self.shape))
        parts = []
        for down, right in AROUND:
            y, x = row + down, column + right
            colour, known = self._colour(time, y, x, step), ~self._hidden(time, y, x, step)
            parts += [colour * known[:, None], known[:, None].float()]
        place = torch.stack([time, row, column], dim=1) / torch.tensor(self.shape)
        angle = (2 * math.pi * place).float()
        features = torch.cat([*parts, angle.sin(), angle.cos()], dim=1)
        return (
            features,
            self._colour(time, row, column, step),
            self._hidden(time, row, column, step),
        )

    def _colour(self, time: Tensor, row: Tensor, column: Tensor, step: int) -> Float[Tensor, "m 3"]:
        """A sum of waves that drift over the picture."""
        drawn = torch.Generator().manual_seed((self.seed << 20) + step)
        frequency = torch.randn(WAVES, 2, generator=drawn).double() * 0.6
        phase = torch.rand(WAVES, generator=drawn).double() * 2 * math.pi
        mix = torch.randn(WAVES, 3, generator=drawn) / WAVES**0.5
        drift = torch.randn(2, generator=drawn).double() * 0.5
        place = torch.stack([row + drift[0] * time, column + drift[1] * time], dim=1)
        return (place @ frequency.T + phase).sin().float() @ mix

    def _hidden(self, time: Tensor, row: Tensor, column: Tensor, step: int) -> Bool[Tensor, " m"]:
        """Hide pixels as if at random, the same for whoever asks."""
        number = (time * 131 + row * 17 + column) * 12.9898 + step * 78.233
        return (number.sin() * 43758.5453).frac().abs() < self.missing
