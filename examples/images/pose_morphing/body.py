"""Where a pixel lies between the key points: coordinates of its own for every part of the body.

Heat maps tell a network where joints are, and nothing between them. Here every part of the body,
from one joint to another, is a frame: how far along it and across it a pixel lies. What moves with
a part keeps its coordinates in every pose, so the pixels of source and target that show the same
place are found nearly by these alone; what foreshortening and turns change, `surface.py` learns
from the whole pose.

Lengths are in halves of the picture's height. Frames of parts are those of Siarohin et al. 2018,
"Deformable GANs for pose-based human image generation", but for the torso, whose shoulders lie one
behind the other when it is seen from the side.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from examples.people.keypoints import NAMES

LIMBS = (
    *[("rsho", "relb"), ("relb", "rwri"), ("lsho", "lelb"), ("lelb", "lwri")],
    *[("rhip", "rkne"), ("rkne", "rank"), ("lhip", "lkne"), ("lkne", "lank")],
)
TORSO, HEAD = ("neck", "hips"), ("neck", "top")
PARTS = (*LIMBS, TORSO, HEAD)
HALF_WIDTHS = (*[0.2] * len(LIMBS), 0.5, 0.4)  # of the parts, in lengths of the torso
OVERHANG = 1.2  # a frame is as many times longer than its part: joints lie inside of it
TOP = 1.6  # times the way from the neck to the nose reaches the top of the head
SHORTEST = 0.1  # half a part seen from its end, in lengths of the torso
USUAL = 0.6  # length of a torso that is not seen
LEAST = 0.1  # height of a heat map, below which its point is missing
ENOUGH = 6  # points that an affine map does not fit by chance
FLAT = 1e-6  # least determinant of points that do not lie on a line
CHANNELS = 3 * len(PARTS)
POSE = 3 * len(NAMES)


def located(maps: Float[Tensor, "b 18 h w"]) -> Float[Tensor, "b 18 3"]:
    """Find the middle of each heat map, finer than its pixels: across, down, and 1 if it is there.

    The middle of the picture is 0, its upper edge -1. Summed in float64: a point that is 1e-6 off
    moves what `surface.py` tells by a thousand times as much.
    """
    maps = maps.double()
    weight = maps.square()
    middle = torch.stack([(weight * x).sum(dim=(2, 3)) for x in grid(maps.shape[2:], maps)], dim=2)
    there = maps.amax(dim=(2, 3))[..., None] > LEAST
    middle = middle / weight.sum(dim=(2, 3))[..., None].clamp(min=1e-6)
    return (torch.cat([middle, torch.ones_like(middle[..., :1])], dim=2) * there).float()


def grid(size: torch.Size | tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far across and down each pixel lies."""
    h, w = size
    down = (2 * torch.arange(h, dtype=like.dtype, device=like.device) + 1 - h) / h
    across = (2 * torch.arange(w, dtype=like.dtype, device=like.device) + 1 - w) / h
    return across[None].expand(h, w), down[:, None].expand(h, w)


def joints(points: Float[Tensor, "b 18 3"]) -> dict[str, Float[Tensor, "b 3"]]:
    """Name the points, and the two that follow from others."""
    found = dict(zip(NAMES, points.unbind(dim=1), strict=True))
    hips = (found["rhip"] + found["lhip"]) / 2
    there = found["rhip"][:, 2:] * found["lhip"][:, 2:]
    top = found["neck"] + TOP * (found["nose"] - found["neck"])
    seen = found["nose"][:, 2:] * found["neck"][:, 2:]
    found["hips"] = torch.cat([hips[:, :2], there], dim=1)
    found["top"] = torch.cat([top[:, :2], seen], dim=1)
    return found


def torso_length(found: dict[str, Float[Tensor, "b 3"]]) -> Float[Tensor, "b 1"]:
    start, end = (found[name] for name in TORSO)
    there = start[:, 2:] * end[:, 2:] > 0
    length = (end - start)[:, :2].norm(dim=1, keepdim=True)
    return torch.where(there, length.clamp(min=SHORTEST * USUAL), USUAL)


def pose(points: Float[Tensor, "b 18 3"]) -> Float[Tensor, "b 54"]:
    """Say where all joints are, in lengths of the torso from the neck, and which are there."""
    found = joints(points)
    from_neck = (points[..., :2] - found["neck"][:, None, :2]) / torso_length(found)[:, None]
    there = points[..., 2:]
    return torch.cat([from_neck * there * there[:, NAMES.index("neck"), None], there], 2).flatten(1)


def bent(points: Float[Tensor, "b 18 3"], moved: Float[Tensor, "b 18 3"]) -> Float[Tensor, " b"]:
    """Measure how far points are from where the best affine map takes them: root mean square.

    Infinite where fewer than `ENOUGH` are there in both, for a map takes any few to any others.

    Args:
        points, moved: As `located` gives them; the result is in the same lengths.
    """
    there = points[..., 2] * moved[..., 2]
    count = there.sum(dim=1)

    def centred(x: Float[Tensor, "b 18 3"]) -> Float[Tensor, "b 18 2"]:
        mean = (there[..., None] * x[..., :2]).sum(dim=1) / count.clamp(min=1)[:, None]
        return there[..., None] * (x[..., :2] - mean[:, None])

    x, y = centred(points), centred(moved)
    (a, b), (_, d) = (row.unbind(dim=1) for row in (x.mT @ x).unbind(dim=1))
    adjugate = torch.stack([d, -b, -b, a], dim=1).unflatten(1, (2, 2))
    determinant = (a * d - b * b).clamp(min=FLAT)[:, None, None]
    left = y - x @ (adjugate @ (x.mT @ y) / determinant)
    squares = left.square().sum(dim=(1, 2)) / (count - 3).clamp(min=1)
    return torch.where(count < ENOUGH, torch.inf, squares.sqrt())


def coordinates(
    points: Float[Tensor, "b 18 3"],
    across: Float[Tensor, "c *place"],
    down: Float[Tensor, "c *place"],
) -> Float[Tensor, "b 30 *place"]:
    """Say for each part whether a place lies on it, how far along and how far across.

    Along and across are -1 to 1 inside; everything falls to 0 from there to twice as far out.

    Args:
        points: As `located` gives them.
        across, down: The places, in the same lengths; of each picture, or of all (c is 1).
    """
    found = joints(points)
    length = torso_length(found)

    def spread(x: Float[Tensor, "b"]) -> Float[Tensor, "b *ones"]:
        return x.reshape(-1, *[1] * (across.ndim - 1))

    channels = []
    for (start, end), half_width in zip(PARTS, HALF_WIDTHS, strict=True):
        a, b = found[start], found[end]
        half = OVERHANG * (b - a)[:, :2] / 2
        reach = half.norm(dim=1)
        dx, dy = (half / reach.clamp(min=1e-6)[:, None]).unbind(dim=1)
        x, y = across - spread((a + b)[:, 0] / 2), down - spread((a + b)[:, 1] / 2)
        along = torch.maximum(reach, SHORTEST * length[:, 0])
        u = (x * spread(dx) + y * spread(dy)) / spread(along)
        v = (y * spread(dx) - x * spread(dy)) / spread(half_width * length[:, 0])
        there = spread(a[:, 2] * b[:, 2])
        on = (2 - torch.maximum(u.abs(), v.abs())).clamp(0, 1) * there
        channels += [on, on * u, on * v]
    return torch.stack(channels, dim=1)
