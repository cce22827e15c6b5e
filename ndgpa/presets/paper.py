"""The two configurations of the paper."""

from ndgpa.operators import GPA
from ndgpa.presets.base import Preset, check_multiple
from ndgpa.selection import TopK
from ndgpa.structures import Image


def paper_pivot(side: int = 256) -> Preset:
    """Build GPA1024_12_64: Phase 1 at 64x64, cells of 2x2 blocks, kappa 12, no scale.

    Source: Section 3.1 of Jetchev et al. 2021.

    Args:
        side: Pixels along each side, a multiple of 64.
    """
    check_multiple("paper_pivot", "side", side, 64)
    image = Image((side, side), side // 64, 2)
    return Preset(GPA(TopK(12), scale=1.0), image, image)


def chal(height: int = 512, kappa: int = 4) -> Preset:
    """Build the 512x256 configuration: Phase 1 at 64x32, cells of one block, kappa 1, 2 or 4.

    Source: Section 3.3 of Jetchev et al. 2021.

    Args:
        height: Pixels, a multiple of 64; the width is half of it.
        kappa: How many key blocks each cell reads.
    """
    check_multiple("chal", "height", height, 64)
    image = Image((height, height // 2), height // 64)
    return Preset(GPA(TopK(kappa), scale=1.0), image, image)
