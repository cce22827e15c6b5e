"""Video Sparse Attention."""

import math
from typing import Literal

from ndgpa import arguments
from ndgpa.operators import GPA
from ndgpa.presets.base import Preset, sizes_of
from ndgpa.selection import TopK
from ndgpa.structures import Grid


def vsa(
    shape: tuple[int, int, int],
    sparsity: float = 0.9,
    tile: tuple[int, int, int] = (4, 4, 4),
    gated: bool = False,
) -> Preset:
    """Build Video Sparse Attention: each tile reads the best tiles, beside a coarse branch.

    Tiles are compared by the logits of their means over valid tokens; of equals, the lowest number
    wins. The coarse softmax counts each tile once. Without a gate the coarse branch has weight 1.
    Means and scores stay in float32, where the released code rounds them to bfloat16.

    Source: Zhang et al. 2025, "VSA: Faster video diffusion with trainable sparse attention".

    Args:
        shape: Frames, height, width, in tokens.
        sparsity: The share of tiles that is not read, in [0, 1). As in the released code, the
            number read is the ceiling of a floating-point product: 0.7 of 10 tiles leaves 4, as
            1 - 0.7 is above 0.3.
        tile: Tokens of a tile along each axis; a shorter axis is one tile.
        gated: Whether the call takes a `gate` for the coarse branch, (b, h, n, dv).
    """
    sizes = sizes_of("vsa", "shape", shape, 3)
    tile_sizes = sizes_of("vsa", "tile", tile, 3)
    arguments.below_one("sparsity", sparsity)
    video = Grid(sizes, tuple(min(t, n) for t, n in zip(tile_sizes, sizes)))
    count = video.num_blocks
    k = max(1, min(math.ceil((1 - sparsity) * count), count))
    branch: Literal["add", "gate"] = "gate" if gated else "add"
    operator = GPA(TopK(k, relevance="logit"), coarse=branch, coarse_sizes=False)
    return Preset(operator, video, video)
