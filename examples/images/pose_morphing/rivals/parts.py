"""Deformable skip connections: every part of the body moves by the affine map of its joints."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from examples.images.pose_morphing.body import LIMBS, OVERHANG, TOP
from examples.images.pose_morphing.config import ModelConfig
from examples.images.pose_morphing.levels import Carried, Given
from examples.images.pose_morphing.rivals.fusion import Fusion
from examples.images.pose_morphing.rivals.rival import Rival
from examples.people.keypoints import NAMES, locate

TORSO = ("rsho", "lsho", "rhip", "lhip")
THICKNESS = 1 / 6  # half a limb's width over the torso's diagonal
NOWHERE = 4.0  # beyond every picture, which spans -1 to 1


class Parts(Rival):
    """Ten boxes around limbs, torso and head: each shows at its new place what it held at its old.

    Where boxes overlap, the largest feature stays; the whole source at its own place is one more.

    Source: Siarohin et al. 2018 ("Deformable GANs for pose-based human image generation"),
    equations 2 to 4. A box is a frame, so its affine map needs no least squares.

    Arguments as of `Skip`.
    """

    def __init__(self, size: tuple[int, int], width: int, config: ModelConfig) -> None:
        super().__init__()
        self.fuse = Fusion(width, config)

    def forward(self, given: Given) -> Carried:
        source = given.source
        places, inside = moves(given.source_maps, given.target_maps, source.shape[2:])
        features = [sampled(source, x) * i for x, i in zip(places, inside, strict=True)]
        carried = torch.stack([source, *features]).amax(dim=0)
        return Carried(self.fuse(given.target, carried), source, painted(given, places, inside))


def moves(
    source_maps: Float[Tensor, "b 18 k l"],
    target_maps: Float[Tensor, "b 18 k l"],
    size: torch.Size,
) -> tuple[Float[Tensor, "p b h w 2"], Float[Tensor, "p b 1 h w"]]:
    """Find for each part and each place of the target where it lay in the source.

    Returns:
        Places, across and down, the picture spans -1 to 1; and 1 inside of the part's box.
    """
    old, new = frames(source_maps), frames(target_maps)
    theta = torch.eye(2, 3, dtype=old.dtype, device=old.device)[None]
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    grid = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=3)[0]
    own = torch.einsum("pbij,hwj->pbhwi", torch.linalg.inv(new), grid)
    places = torch.einsum("pbij,pbhwj->pbhwi", old, own)[..., :2]
    there = ((old[..., 0, 2] < NOWHERE) & (new[..., 0, 2] < NOWHERE))[..., None, None]
    inside = (own[..., :2].abs().amax(dim=4) <= 1) & there
    return places, inside[:, :, None].to(old.dtype)


def frames(maps: Float[Tensor, "b 18 k l"]) -> Float[Tensor, "10 b 3 3"]:
    """Box in the parts: matrices that take -1 to 1 of a box to its place in the picture."""
    points = locate(maps.float())
    size = points.new_tensor([maps.shape[3], maps.shape[2]])
    at = dict(zip(NAMES, points[..., :2].unbind(dim=1), strict=True))
    seen = dict(zip(NAMES, (points[..., 2] > 0).unbind(dim=1), strict=True))
    trunk = [at[name] for name in TORSO]
    thickness = THICKNESS * ((trunk[0] - trunk[3]).norm(dim=1) + (trunk[1] - trunk[2]).norm(dim=1))
    has_trunk = torch.stack([seen[name] for name in TORSO]).all(dim=0)
    found = [(*limb(at[a], at[b], thickness / 2), seen[a] & seen[b]) for a, b in LIMBS]
    right, left, right_hip, left_hip = trunk
    across, down = right + right_hip - left - left_hip, right + left - right_hip - left_hip
    found.append((torch.stack(trunk).mean(dim=0), across / 4, down / 4, has_trunk))
    top = at["neck"] + TOP * (at["nose"] - at["neck"])
    head = limb(at["neck"], top, thickness)
    found.append((*head, seen["neck"] & seen["nose"]))
    return torch.stack([frame(*each, has_trunk, size) for each in found])


def limb(
    a: Float[Tensor, "b 2"], b: Float[Tensor, "b 2"], half_width: Float[Tensor, " b"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Box in a segment: its centre, and its two half axes in pixels."""
    along = OVERHANG * (b - a) / 2
    across = F.normalize(torch.stack([-along[:, 1], along[:, 0]], dim=1), dim=1)
    return (a + b) / 2, along, across * half_width[:, None]


def frame(
    centre: Float[Tensor, "b 2"],
    first: Float[Tensor, "b 2"],
    second: Float[Tensor, "b 2"],
    seen: Tensor,
    scaled: Tensor,
    size: Float[Tensor, " 2"],
) -> Float[Tensor, "b 3 3"]:
    """Write a box as a matrix in coordinates from -1 to 1; a box that is not there is far away.

    Args:
        centre, first, second: The box in pixels.
        seen: Whether its own points are there, for each picture.
        scaled: Whether those are that its width is measured by.
        size: Width and height of the picture.
    """
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    there = seen & scaled & (area.abs() > 1e-3)
    middle = (2 * centre + 1) / size - 1
    columns = torch.stack([2 * first / size, 2 * second / size, middle], dim=2)
    last = columns.new_tensor([0.0, 0.0, 1.0]).expand(len(columns), 1, 3)
    absent = columns.new_tensor([[1.0, 0, 2 * NOWHERE], [0, 1.0, 2 * NOWHERE], [0, 0, 1.0]])
    return torch.where(there[:, None, None], torch.cat([columns, last], dim=1), absent)


def sampled(
    x: Float[Tensor, "b c h w"], places: Float[Tensor, "b h w 2"]
) -> Float[Tensor, "b c h w"]:
    return F.grid_sample(x, places.to(x.dtype), padding_mode="border", align_corners=False)


def painted(
    given: Given, places: Float[Tensor, "p b h w 2"], inside: Float[Tensor, "p b 1 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Average the pixels of the parts that lie at a place; where none does, the source's own."""
    moved = torch.stack([sampled(given.pixels, x) for x in places]) * inside
    count = inside.sum(dim=0)
    return torch.where(count > 0, moved.sum(dim=0) / count.clamp(min=1), given.pixels)
