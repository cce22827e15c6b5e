"""Flow: each level corrects where the coarser one looks, and the source is warped."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.stylegan2 import Conv, activate
from examples.images.pose_morphing.attention import enlarge
from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.levels import Carried, Given
from examples.images.pose_morphing.rivals.fusion import Fusion
from examples.images.pose_morphing.rivals.rival import Rival


class Flow(Rival):
    """A field of offsets, found from coarse to fine, by which features and pixels are sampled.

    It begins at nothing: every site reads its own place.

    Source: Ren et al. 2020 ("Deep image spatial transformation for person image generation") and
    Han et al. 2019 ("ClothFlow"), whose pyramid it has; without the local attention of the former.

    Arguments as of `Skip`.
    """

    def __init__(self, size: tuple[int, int], width: int, config: ModelConfig) -> None:
        super().__init__()
        self.correct = Conv(2 * width, width, lr=config.weight_lr)
        self.to_offset = Conv(width, 2, lr=config.weight_lr)
        nn.init.zeros_(self.to_offset.weight)
        self.fuse = Fusion(width, config)

    def forward(self, given: Given) -> Carried:
        target, source = given.target, given.source
        offsets = target.new_zeros(len(target), 2, *target.shape[2:])
        if given.handed is not None:
            offsets = enlarge(given.handed)
        seen = torch.cat([target, warped(source, offsets)], dim=1)
        offsets = offsets + self.to_offset(activate(self.correct(seen)))
        carried = self.fuse(target, warped(source, offsets))
        return Carried(carried, source, warped(given.pixels, offsets), handed=offsets)


def warped(
    x: Float[Tensor, "b c h w"], offsets: Float[Tensor, "b 2 h w"]
) -> Float[Tensor, "b c h w"]:
    """Sample a picture bilinearly beside its own places, and at its border beyond it.

    Args:
        x: The picture.
        offsets: Across and down; the picture spans -1 to 1.
    """
    identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    places = F.affine_grid(identity, list(x.shape), align_corners=False)
    places = places + rearrange(offsets.to(x.dtype), "b xy h w -> b h w xy")
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)
