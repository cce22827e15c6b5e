"""The losses: pixels, edges, copies, texture, correspondence."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from examples.images.pose_morphing.levels import Level
from ndgpa import Full

L1_SCALES = ((1, 1.0), (2, 0.5), (4, 0.5))  # pixels along the side of a mean, and its weight

# Texture energy
FILTERS = 24
FILTER_PX = 5  # side of a filter
WINDOW_PX = 8  # over which energy is averaged
SCALES = 2
SMALLEST_PX = (WINDOW_PX + FILTER_PX - 1) * 2 ** (SCALES - 1)  # shorter side of a picture

LEAST_SITES = 64  # smaller attentions are too coarse to be told where to look

R1_GAMMA = 10.0  # of the gradient penalty
R1_EVERY = 16  # steps between penalties, which then count as many times more


def multi_scale_l1(
    image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Compare the picture, and its means over 2x2 and 4x4 pixels, by absolute differences."""
    difference = image - truth
    terms = [weight * F.avg_pool2d(difference, side).abs().mean() for side, weight in L1_SCALES]
    return torch.stack(terms).sum()


def edge_l1(image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Compare the strengths of vertical and of horizontal edges."""
    terms = [(image.diff(dim=d).abs() - truth.diff(dim=d).abs()).abs().mean() for d in (2, 3)]
    return torch.stack(terms).sum()


def copy_loss(
    copied: list[Float[Tensor, "b 3 _ _"]], truth: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Compare what each level copied with the target at its size, and add over levels.

    Without it attention learns no correspondence within minutes, even where it is full: colours
    that a network paints by itself lower the other losses faster.
    """
    terms = [(x - F.adaptive_avg_pool2d(truth, x.shape[2:])).abs().mean() for x in copied]
    return torch.stack(terms).sum() if terms else truth.new_zeros(())


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
        """Measure the distance, averaged over the batch."""
        return self.each(image, truth).mean()

    def each(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Measure the distance of each picture from its truth."""
        pairs = zip(self.energies(image), self.energies(truth))
        return torch.stack([(a - b).abs().mean(dim=(1, 2, 3)) for a, b in pairs]).mean(dim=0)

    def energies(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 24 l k"]]:
        """Measure the energy of each filter around each place, a map a scale, finest first.

        Raises:
            ValueError: The picture is too small for a window at the coarsest scale.
        """
        if min(image.shape[2:]) < SMALLEST_PX:
            h, w = image.shape[2:]
            raise ValueError(
                f"texture energy needs sides of {SMALLEST_PX} pixels or more, got {h}x{w}"
            )
        scales = [image]
        for _ in range(SCALES - 1):
            scales.append(F.avg_pool2d(scales[-1], 2))
        responses = [F.conv2d(x, self.filters.to(x.dtype)) for x in scales]
        return [F.avg_pool2d(x.abs(), WINDOW_PX, stride=WINDOW_PX // 2) for x in responses]


def random_filters(seed: int) -> Float[Tensor, "filters 3 side side"]:
    """Normal draws, of mean zero in each channel, so that no flat colour answers, and norm 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(FILTERS, 3, FILTER_PX, FILTER_PX, generator=generator)
    drawn = rearrange(drawn - drawn.mean(dim=(2, 3), keepdim=True), "f c y x -> f (c y x)")
    return rearrange(F.normalize(drawn), "f (c y x) -> f c y x", c=3, y=FILTER_PX)


def correspondence_loss(
    levels: list[Level], origin: Float[Tensor, "b h w 2"], known: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Cross-entropy between attention and the true place, shared bilinearly by four keys.

    Args:
        levels: Of a generator; those with full attention count.
        origin: x and y of the source of each target pixel, in -1 to 1 over the picture.
        known: Where there is such a source.
    """
    terms = [
        level_loss(level, origin, known)
        for level in levels
        if isinstance(level.operator, Full) and level.query.shape[2] >= LEAST_SITES
    ]
    return torch.stack(terms).mean() if terms else origin.new_zeros(())


def level_loss(
    level: Level, origin: Float[Tensor, "b h w 2"], known: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    height, width = level.size
    place = F.adaptive_avg_pool2d(rearrange(origin, "b h w c -> b c h w"), level.size)
    weight = F.adaptive_avg_pool2d(known[:, None].float(), level.size).flatten(1)
    x = (place[:, 0].flatten(1) + 1) * width / 2 - 0.5
    y = (place[:, 1].flatten(1) + 1) * height / 2 - 0.5
    logits = affinities(level)
    wanted = tent(y, height)[..., :, None] * tent(x, width)[..., None, :]  # (b, n, height, width)
    terms = -(wanted.flatten(2)[:, None] * logits.log_softmax(dim=3)).sum(dim=3).mean(dim=1)
    weight = weight * (weight > 0.5)
    return (terms * weight).sum() / weight.sum().clamp(min=1)


def affinities(level: Level) -> Float[Tensor, "b heads n n_k"]:
    """Compute the logits of a level of full attention, in float32."""
    assert isinstance(level.operator, Full)
    query, key = level.query.float(), level.key.float()
    if level.operator.affinity == "euclidean":
        return -torch.cdist(query, key).square()
    return query @ key.mT


def tent(x: Float[Tensor, "b n"], length: int) -> Float[Tensor, "b n length"]:
    """Spread x linearly over the two whole numbers beside it."""
    numbers = torch.arange(length, device=x.device)
    return (1 - (x[..., None] - numbers).abs()).clamp(min=0)
