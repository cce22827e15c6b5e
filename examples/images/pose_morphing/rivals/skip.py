"""Plain skip connections: the source's features stay where they are."""

from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.levels import Carried, Given
from examples.images.pose_morphing.rivals.fusion import Fusion
from examples.images.pose_morphing.rivals.rival import Rival


class Skip(Rival):
    """A UNet whose convolutions alone have to move what the source shows.

    Source: what Ma et al. 2017 ("Pose guided person image generation") and Zhu et al. 2019 begin
    with; without the cascade of the latter.

    Args:
        size: Pixels of the level.
        width: Channels of its features.
        config: The generator's options.
    """

    def __init__(self, size: tuple[int, int], width: int, config: ModelConfig) -> None:
        super().__init__()
        self.fuse = Fusion(width, config)

    def forward(self, given: Given) -> Carried:
        return Carried(self.fuse(given.target, given.source), given.source)
