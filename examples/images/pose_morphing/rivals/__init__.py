"""What the paper compares its copy attention with, small: how else a source reaches its target.

Each stands in the slot of the copy attention at a level, between the same encoders and decoders,
and is written from the paper that it is named after; none is the whole system of that paper.
"""

from collections.abc import Callable

from torch import nn

from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.rivals.crossing import Crossing
from examples.images.pose_morphing.rivals.flow import Flow
from examples.images.pose_morphing.rivals.modulation import Modulation
from examples.images.pose_morphing.rivals.parts import Parts
from examples.images.pose_morphing.rivals.skip import Skip

RIVALS: dict[str, Callable[[tuple[int, int], int, ModelConfig], nn.Module]] = {
    "SKIP": Skip,
    "PARTS": Parts,
    "FLOW": Flow,
    "BFT": Modulation,
    "XING": Crossing,
}
