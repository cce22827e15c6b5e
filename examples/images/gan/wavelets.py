"""StyleNAT's discriminator, which looks at the Haar wavelets of a picture at every size.

Source: Gal et al. 2021, "SWAGAN: A Style-based Wavelet-driven Generative Model", with spectral
norms as in the released code of StyleNAT.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import activate, halve, with_deviation
from examples.images.gan.spectral import conv, linear

LAST = 4  # side of the last features


def haar(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4*c h/2 w/2"]:
    """Transform squares of 2x2 into mean, two slopes and the rest; energy stays."""
    squares = rearrange(x, "b c (h y) (w x) -> b (y x) c h w", y=2, x=2)
    return rearrange(
        einsum(_signs(x), squares, "k s, b s ... -> b k ..."), "b k c ... -> b (k c) ..."
    )


def inverse_haar(x: Float[Tensor, "b 4*c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Undo `haar`."""
    parts = rearrange(x, "b (k c) h w -> b k c h w", k=4)
    squares = einsum(_signs(x), parts, "k s, b k ... -> b s ...")
    return rearrange(squares, "b (y x) c h w -> b c (h y) (w x)", y=2)


def _signs(like: Tensor) -> Float[Tensor, "4 4"]:
    """An orthogonal matrix: rows are wavelets, columns the pixels of a square."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=like.dtype, device=like.device)
    return torch.kron(line, line) / 2


def official_widths(size: int, multiplier: int = 2) -> tuple[int, ...]:
    """Return the channels of the released code for pictures of `size`.

    The first entry, at half of the size, is what StyleGAN2 has at the whole size.
    """
    sides = [2**i for i in range(int(math.log2(size)) - 2, 1, -1)]
    return tuple(min(512, 16384 * multiplier // side) for side in (size, *sides))


class Discriminator(nn.Module):
    """Judge pictures; no block is residual, and every size adds its wavelets.

    Args:
        widths: Channels from half of the pictures' size down to 4 pixels.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.from_wavelets = nn.ModuleList(conv(12, width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            nn.ModuleList([conv(a, a), conv(a, b)]) for a, b in pairwise(widths)
        )
        width = widths[-1]
        self.last = conv(width + 1, width)
        self.dense = linear(width * LAST**2, width)
        self.score = linear(width, 1)

    def forward(self, picture: Float[Tensor, "b 3 size size"]) -> Float[Tensor, " b"]:
        waves = haar(picture)
        x = activate(self.from_wavelets[0](waves))
        for (first, second), from_wavelets in zip(self.blocks, self.from_wavelets[1:]):
            x = activate(second(halve(activate(first(x)))))
            waves = haar(halve(inverse_haar(waves)))
            x = x + activate(from_wavelets(waves))
        x = activate(self.last(with_deviation(x)))
        return self.score(activate(self.dense(x.flatten(1))))[:, 0]
