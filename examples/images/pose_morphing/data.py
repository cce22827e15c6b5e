"""What one training step sees: sources, poses and truths, drawn from torch's own generator.

The loop seeds that generator from the number of the step, so a batch depends on that alone. The
people come from `examples/people`. tau is one random affine map for a picture, its pose maps and
its key points.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.people.figures.truth import Truth
from examples.people.keypoints import heat_maps
from examples.people.pictures import People, Pictures
from examples.people.variety import under_conditions

SIGMA = 6 / 256  # of heat maps, in heights of the picture: 6 pixels at 256 as in PATN
STRENGTH = 0.15  # of Section 3.1 of the paper
STRONGEST = 0.5  # from here on a map may be singular


@dataclass(frozen=True)
class Batch:
    """Pictures in -1 to 1, heat maps of key points, and where the source of a pixel is known."""

    source: Float[Tensor, "b 3 h w"]
    source_maps: Float[Tensor, "b 18 h w"]
    truth: Float[Tensor, "b 3 h w"]  # in the target's pose
    target_maps: Float[Tensor, "b 18 h w"]
    origin: Float[Tensor, "b h w 2"]  # x and y in the source of each target pixel, in -1 to 1
    known: Bool[Tensor, "b h w"]  # where `origin` holds
    moved: Bool[Tensor, " b"]  # whether the truth is the source itself, distorted

    def __len__(self) -> int:
        return len(self.source)

    def part(self, ids: slice | Int[Tensor, " k"]) -> "Batch":
        """Return some of the samples."""
        return Batch(*(getattr(self, name)[ids] for name in self.__dataclass_fields__))

    def reduced(self, times: int) -> "Batch":
        """Halve the sides so many times, by means; a place is known where half its pixels are."""
        if not times:
            return self
        side = 2**times
        names = ("source", "source_maps", "truth", "target_maps")
        pictures = (F.avg_pool2d(getattr(self, name), side) for name in names)
        h, w = self.known.shape[1:]
        origin, share = pooled_origin(self.origin, self.known, (h // side, w // side))
        return Batch(*pictures, origin, share >= 0.5, self.moved)


def pooled_origin(
    origin: Float[Tensor, "b h w 2"], known: Bool[Tensor, "b h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b k l 2"], Float[Tensor, "b k l"]]:
    """Average the places that are known over the pixels of each site, whose known share follows."""
    weight = known[:, None].float()
    share = F.adaptive_avg_pool2d(weight, size)
    place = F.adaptive_avg_pool2d(rearrange(origin, "b h w c -> b c h w") * weight, size)
    return rearrange(place / share.clamp(min=1e-6), "b c k l -> b k l c"), share[:, 0]


def to_tensors(
    people: People, device: torch.device
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 18 h w"]]:
    """Return pictures in -1 to 1, and the heat maps of their key points."""
    images = torch.from_numpy(people.images).to(device)
    images = rearrange(images, "b h w c -> b c h w").float() / 127.5 - 1
    return images, to_maps(people.points, (images.shape[2], images.shape[3]), device)


def to_maps(
    points: Float[np.ndarray, "b 18 3"], size: tuple[int, int], device: torch.device
) -> Float[Tensor, "b 18 h w"]:
    """Draw the heat maps of key points."""
    return heat_maps(torch.from_numpy(points).to(device), size, SIGMA * size[0])


def draw_distorted(
    pictures: Pictures,
    batch: int,
    device: torch.device,
    strength: float = STRENGTH,
    variety: float = 0.0,
) -> Batch:
    """Draw the self-supervised task of the paper: given M, B and tau(B), make tau(M).

    Args:
        variety: The share of the pictures that are seen under other conditions: variety.py.
    """
    people = pictures.at(torch.randint(len(pictures), (batch,)).numpy())
    (people,) = under_conditions([people], variety)
    return distorted(*to_tensors(people, device), random_affine(batch, strength))


def distorted(
    image: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 18 h w"], theta: Float[Tensor, "b 2 3"]
) -> Batch:
    """Build the batch of the distortion task for given tau."""
    theta = theta.to(image.device)
    origin = F.affine_grid(theta, list(image.shape), align_corners=False)
    truth, target_maps = warp(image, theta), warp(maps, theta, "zeros")
    known, moved = (origin.abs() < 1).all(-1), theta.new_ones(len(theta)).bool()
    return Batch(image, maps, truth, target_maps, origin, known, moved)


def draw_pairs(
    pictures: Pictures,
    batch: int,
    device: torch.device,
    truth: Truth | None = None,
    variety: float = 0.0,
) -> Batch:
    """Draw two pictures of one person each.

    Args:
        truth: Of these pictures; without it their correspondence stays unknown.
        variety: The share of the pairs of which both are seen under other conditions.
    """
    rows = torch.randint(len(pictures.pairs), (batch,)).numpy()
    sources, targets = under_conditions(list(pictures.pairs_at(rows)), variety)
    drawn = paired(sources, targets, device)
    return drawn if truth is None else with_origin(drawn, truth, pictures.pairs[rows])


def with_origin(batch: Batch, truth: Truth, pairs: Int[np.ndarray, "b 2"]) -> Batch:
    """Say where each pixel of drawn targets is in their sources."""
    places, known = zip(*(truth.correspond(*pair) for pair in pairs.tolist()), strict=True)
    place = torch.from_numpy(np.stack(places)).flip(-1)  # x before y
    sides = torch.tensor(batch.known.shape[:0:-1])
    origin = ((2 * place + 1) / sides - 1).to(batch.origin)
    return replace(batch, origin=origin, known=torch.from_numpy(np.stack(known)).to(origin.device))


def paired(sources: People, targets: People, device: torch.device) -> Batch:
    """Build the batch of given sources and targets; their correspondence stays unknown."""
    source, source_maps = to_tensors(sources, device)
    truth, target_maps = to_tensors(targets, device)
    b, _, h, w = source.shape
    nowhere = source.new_zeros(b, h, w, 2)
    known, moved = nowhere[..., 0].bool(), nowhere[:, 0, 0, 0].bool()
    return Batch(source, source_maps, truth, target_maps, nowhere, known, moved)


def draw_posed(pictures: Pictures, batch: Batch, device: torch.device) -> Batch:
    """Give the people of a batch random poses, the paper's B_R; that has no truth: it is NaN."""
    poses = pictures.poses
    chosen = torch.randint(len(poses), (len(batch),)).numpy()
    maps = to_maps(poses[chosen], pictures.size, device)
    unknown = torch.full_like(batch.truth, torch.nan)
    known, moved = torch.zeros_like(batch.known), torch.zeros_like(batch.moved)
    return Batch(batch.source, batch.source_maps, unknown, maps, batch.origin, known, moved)


def join(batches: list[Batch]) -> Batch:
    """Concatenate batches."""
    names = Batch.__dataclass_fields__
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


def random_affine(
    batch: int, strength: float = STRENGTH, generator: torch.Generator | None = None
) -> Float[Tensor, "batch 2 3"]:
    """Draw the identity plus uniform noise of at most `strength` on all six entries.

    In coordinates that run from -1 to 1 over the picture, so noise on the last column moves it by
    up to `strength` times half its side. Made on the device of the generator.

    Source: Section 3.1 of Jetchev et al. 2021, which leaves open whether the shift is noisy too.

    Raises:
        ValueError: `strength` is not from 0 to below 0.5, where every map can be undone.
    """
    if not 0 <= strength < STRONGEST:
        raise ValueError(f"strength must be from 0 to below {STRONGEST}, got {strength}")
    device = None if generator is None else generator.device
    noise = 2 * torch.rand(batch, 2, 3, generator=generator, device=device) - 1
    return torch.eye(2, 3, device=device) + strength * noise


def warp(
    images: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"], padding: str = "border"
) -> Float[Tensor, "b c h w"]:
    """Move pixels: at x comes what the image has at theta x, bilinearly.

    Args:
        images: Pictures or pose maps, floating.
        theta: From `random_affine`.
        padding: What is outside the image: "border", the nearest pixel of it; "zeros", right for
            pose maps, where a key point at the very edge would be drawn out; or "reflection".
    """
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def warp_points(
    points: Float[Tensor, "b k 3"], theta: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b k 3"]:
    """Move key points as `warp` moves pixels.

    Args:
        points: x and y in pixels, the centre of the first pixel at 0, 0; and 1 when present, else
            0.
        theta: From `random_affine`.
        size: Height and width in pixels.

    Returns:
        The points; -1, -1, 0 for those that were not there or that have left the frame.
    """
    h, w = size
    sides = points.new_tensor([w, h])
    place = (2 * points[..., :2] + 1) / sides - 1
    linear, shift = theta.to(points.dtype).split([2, 1], dim=2)
    moved = torch.linalg.solve(linear, place.mT - shift).mT
    moved = ((moved + 1) * sides - 1) / 2
    inside = ((moved >= -0.5) & (moved < sides - 0.5)).all(dim=-1, keepdim=True)
    kept = inside & (points[..., 2:] > 0)
    return torch.where(kept, torch.cat([moved, points[..., 2:]], dim=-1), missing(points))


def missing(points: Float[Tensor, "b k 3"]) -> Float[Tensor, "3"]:
    """Return a key point that is not there."""
    return points.new_tensor([-1, -1, 0])
