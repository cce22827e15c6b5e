"""Local texture energy: are there as strong stripes, checks, edges here as there should be?"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

FILTERS = 24
SIDE = 5  # pixels of a filter
WINDOW = 8  # pixels over which energy is averaged
SCALES = 2
SMALLEST = (WINDOW + SIDE - 1) * 2 ** (SCALES - 1)  # pixels of the shorter side of a picture


class TextureEnergy(nn.Module):
    """How far two pictures lie apart in local texture.

    The responses to random filters, as absolute values averaged over windows that overlap by half,
    at each scale; the mean absolute difference. It forgives a pattern that is a pixel or two out of
    place, and does not forgive one that is blurred away, which squared error would rather have.
    Doubling the range of the pictures doubles it.

    Args:
        seed: Draws the filters; they are constants, kept in no checkpoint.
    """

    filters: Tensor  # (filters, 3, side, side)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("filters", random_filters(seed), persistent=False)

    def forward(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        """The distance, a mean over the batch too."""
        return self.each(image, truth).mean()

    def each(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """The distance of each picture from its truth."""
        pairs = zip(self.energies(image), self.energies(truth))
        return torch.stack([(a - b).abs().mean(dim=(1, 2, 3)) for a, b in pairs]).mean(dim=0)

    def energies(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 24 l k"]]:
        """The energy of each filter around each place, a map for each scale, finest first.

        Raises:
            ValueError: The picture is too small for a window at the coarsest scale.
        """
        if min(image.shape[2:]) < SMALLEST:
            h, w = image.shape[2:]
            raise ValueError(
                f"texture energy needs sides of {SMALLEST} pixels or more, got {h}x{w}"
            )
        scales = [image]
        for _ in range(SCALES - 1):
            scales.append(F.avg_pool2d(scales[-1], 2))
        responses = [F.conv2d(x, self.filters.to(x.dtype)) for x in scales]
        return [F.avg_pool2d(x.abs(), WINDOW, stride=WINDOW // 2) for x in responses]


def random_filters(seed: int) -> Float[Tensor, "filters 3 side side"]:
    """Normal draws, of mean zero in each channel, so that no flat colour answers, and norm 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(FILTERS, 3, SIDE, SIDE, generator=generator)
    drawn = rearrange(drawn - drawn.mean(dim=(2, 3), keepdim=True), "f c y x -> f (c y x)")
    return rearrange(F.normalize(drawn), "f (c y x) -> f c y x", c=3, y=SIDE)
