"""The losses: pixels, edges, structure, copies, texture, correspondence."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import ndgpa
from examples.images.pose_morphing.data import pooled_origin
from examples.images.pose_morphing.levels import Level
from ndgpa import GPA, Full
from ndgpa.operators import Operator
from ndgpa.problem import Selection

L1_SCALES = ((1, 1.0), (2, 0.5), (4, 0.5))  # pixels along the side of a mean, and its weight

# Texture energy
FILTERS = 24
FILTER_PX = 5  # side of a filter
WINDOW_PX = 8  # over which energy is averaged
SCALES = 2
SMALLEST_PX = (WINDOW_PX + FILTER_PX - 1) * 2 ** (SCALES - 1)  # shorter side of a picture

# Structural similarity
SSIM_PX = 11  # side of a window
SSIM_SIGMA_PX = 1.5
SSIM_STABLE = (0.01, 0.03)  # K_1 and K_2 of the paper

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


def structural_loss(
    image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Return 1 less the structural similarity, of pictures in -1 to 1.

    The mean over channels and over pixels whose window lies inside.

    Source: Wang et al. 2004, "Image quality assessment", with a Gaussian window; as a loss beside
    absolute differences, Zhao et al. 2017, "Loss functions for image restoration with neural
    networks".
    """
    with torch.autocast(image.device.type, enabled=False):
        return 1 - structural_similarity((image.float() + 1) / 2, (truth.float() + 1) / 2).mean()


def structural_similarity(
    image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h-10 w-10"]:
    """Compare each window of two pictures in 0 to 1, not in sixteen bits: variances cancel."""
    offsets = torch.arange(SSIM_PX, dtype=image.dtype, device=image.device) - SSIM_PX // 2
    window = (-0.5 * (offsets / SSIM_SIGMA_PX).square()).exp()
    window = (window / window.sum()).expand(3, 1, 1, -1)

    def mean(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 k l"]:
        return F.conv2d(F.conv2d(x, window, groups=3), window.mT, groups=3)

    m, n = mean(image), mean(truth)
    variance = mean(image.square()) - m.square() + mean(truth.square()) - n.square()
    covariance = mean(image * truth) - m * n
    c1, c2 = (k**2 for k in SSIM_STABLE)
    similar = (2 * m * n + c1) * (2 * covariance + c2)
    return similar / ((m.square() + n.square() + c1) * (variance + c2))


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
    levels: list[Level],
    origin: Float[Tensor, "b h w 2"],
    known: Bool[Tensor, "b h w"],
    kind: type[Full] | type[GPA] = Full,
    sharper: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy between attention and the true place, shared bilinearly by four keys.

    Where an attention selects, true keys that it does not read count as if it read them too: that
    draws their blocks into the selection.

    Args:
        levels: Of a generator.
        origin: x and y of the source of each target pixel, in -1 to 1 over the picture.
        known: Where there is such a source.
        kind: Of the attentions that count.
        sharper: The logits of a sample are so many times too large, 1 unless told: a cross-entropy
            spreads attention as far as it is unsure of the place, and such a mean of pixels is
            blurred.
    """
    sharper = origin.new_ones(len(origin)) if sharper is None else sharper
    terms = [
        level_loss(level, origin, known, sharper)
        for level in levels
        if isinstance(level.operator, kind) and level.query.shape[2] >= LEAST_SITES
    ]
    return torch.stack(terms).mean() if terms else origin.new_zeros(())


def level_loss(
    level: Level,
    origin: Float[Tensor, "b h w 2"],
    known: Bool[Tensor, "b h w"],
    sharper: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    selection = selection_of(level) if isinstance(level.operator, GPA) else None
    root = sharper.sqrt()[:, None, None, None]
    query, key = (x.float() / root for x in (level.query, level.key))
    level = replace(level, query=query, key=key)
    place, weight = pooled_origin(origin, known, level.size)
    keys, shares = four_keys(place.flatten(1, 2), level.size)
    logits = logits_of(level, keys)
    true = logits.masked_fill(shares[:, None] == 0, -torch.inf)  # at an edge two keys are one
    total = log_sum_exp(level, selection, keys, true)
    terms = total.mean(dim=1) - (shares[:, None] * logits).sum(dim=3).mean(dim=1)
    weight = (weight * (weight > 0.5)).flatten(1)
    return (terms * weight).sum() / weight.sum().clamp(min=1)


def four_keys(
    place: Float[Tensor, "b n 2"], size: tuple[int, int]
) -> tuple[Int[Tensor, "b n 4"], Float[Tensor, "b n 4"]]:
    """Return the keys around each place, x and y in -1 to 1, and their bilinear shares."""
    sides = place.new_tensor([size[1], size[0]])
    at = (((place + 1) * sides - 1) / 2).clamp(min=0).minimum(sides - 1)
    low = at.floor()
    high = (low + 1).minimum(sides - 1)
    part = at - low
    (x0, y0), (x1, y1), (px, py) = (t.unbind(dim=2) for t in (low, high, part))
    keys = torch.stack([y * size[1] + x for y in (y0, y1) for x in (x0, x1)], dim=2)
    shares = torch.stack([b * a for b in (1 - py, py) for a in (1 - px, px)], dim=2)
    return keys.long(), shares


def logits_of(level: Level, keys: Int[Tensor, "b n y"]) -> Float[Tensor, "b heads n y"]:
    """Compute the logits of every query with keys of its own."""
    query, key = level.query, level.key
    b, heads, _, d = query.shape
    index = keys.flatten(1)[:, None, :, None].expand(b, heads, -1, d)
    key = key.gather(2, index).unflatten(2, keys.shape[1:])
    if form_of(level.operator) == "euclidean":
        return -(query[..., None, :] - key).square().sum(dim=4)
    return (query[..., None, :] * key).sum(dim=4)


def form_of(operator: Operator) -> str:
    assert isinstance(operator, (Full, GPA))
    return operator.affinity


@torch.no_grad()
def selection_of(level: Level) -> Selection:
    assert isinstance(level.operator, GPA)
    form: dict[str, Any] = {"scale": 1.0, "affinity": form_of(level.operator)}
    query, key = level.query.float(), level.key.float()
    return ndgpa.select(query, key, level.structure, level.operator.rule, **form)


def log_sum_exp(
    level: Level,
    selection: Selection | None,
    keys: Int[Tensor, "b n y"],
    logits: Float[Tensor, "b heads n y"],
) -> Float[Tensor, "b heads n"]:
    """Compute the log-sum-exp of all logits of every query: of what it reads, and of `keys`."""
    if selection is None:
        return affinities(level).logsumexp(dim=3)
    query, key, structure = level.query, level.key, level.structure
    form: dict[str, Any] = {"scale": 1.0, "affinity": form_of(level.operator)}
    read = ndgpa.attend(query, key, key[..., :1], selection, structure, return_lse=True, **form)[1]
    chosen = selection.blocks[:, :, structure.cell_of_site]  # (b, heads, n, kappa)
    blocks = structure.block_of_site[keys][:, None]
    unread = (chosen[..., None, :] != blocks[..., None]).all(dim=4)
    return torch.cat([read[..., None], logits.masked_fill(~unread, -torch.inf)], 3).logsumexp(3)


def affinities(level: Level) -> Float[Tensor, "b heads n n_k"]:
    """Compute the logits of a level of full attention."""
    query, key = level.query, level.key
    if form_of(level.operator) == "euclidean":
        return -torch.cdist(query, key).square()
    return query @ key.mT
