"""A camera that the program moves over a scene, and a piece of another scene that glides across.

Shapes: t frames, h w pixels of a picture, H W of the scene.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def film(
    scene: Float[Tensor, "t 3 H W"], path: Float[Tensor, "t 2"], side: int, zoom: float = 1.0
) -> Float[Tensor, "t 3 side side"]:
    """Film squares whose upper left corner stands at `path`, (x, y) in pixels of the scene.

    Args:
        zoom: Pixels of the scene along one of the picture.
    """
    steps = (torch.arange(side) + 0.5) * zoom
    x = steps[None, None, :] + path[:, 0, None, None]
    y = steps[None, :, None] + path[:, 1, None, None]
    x, y = 2 * x / scene.shape[3] - 1, 2 * y / scene.shape[2] - 1
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    return F.grid_sample(scene, grid, padding_mode="reflection", align_corners=False)


def wander(
    frames: int, room: tuple[float, float], speed: float, shake: float, generator: torch.Generator
) -> Float[Tensor, "t 2"]:
    """Pan, turn back at the borders of the room (x, y), and shake as a hand does.

    Args:
        speed: Pixels from frame to frame.
        shake: Pixels, the standard deviation.
    """
    turn, *start = torch.rand(3, generator=generator).tolist()
    turns = 6.28 * turn + torch.linspace(0, 1, frames) * torch.randn(1, generator=generator)
    step = speed * torch.stack([turns.cos(), 0.5 * turns.sin()], dim=1)
    size = torch.tensor(room)
    path = step.cumsum(dim=0) + torch.tensor(start) * size
    path = path + shake * torch.randn(frames, 2, generator=generator)
    around = path.remainder((2 * size).clamp(min=1e-3))
    return torch.minimum(around, (2 * size - around).clamp(min=0))


def with_passer(
    frames: Float[Tensor, "t 3 h w"],
    scenes: list[Float[Tensor, "s 3 H W"]],
    generator: torch.Generator,
) -> Float[Tensor, "t 3 h w"]:
    """Move an ellipse cut out of a scene over the clip at its own speed."""
    count, side = len(frames), frames.shape[3]
    pick, wide, high, x, y, dx, dy, some = torch.rand(8, generator=generator).tolist()
    if some < 0.3:
        return frames
    scene = scenes[int(pick * len(scenes))][:1].expand(count, -1, -1, -1)
    time = torch.arange(count) - count / 2
    shift = torch.stack([time * 4 * (dx - 0.5), time * 2 * (dy - 0.5)], dim=1)
    middle = torch.tensor([scene.shape[3] / 2, scene.shape[2] / 2]) - side / 2
    texture = film(scene, middle - shift, side)
    pixel = torch.arange(side) + 0.5
    centre = shift + torch.tensor([x, y]) * side
    x_off = (pixel[None, None, :] - centre[:, 0, None, None]) / (side * (0.1 + 0.2 * wide))
    y_off = (pixel[None, :, None] - centre[:, 1, None, None]) / (side * (0.1 + 0.2 * high))
    edge = (8 * (1 - (x_off**2 + y_off**2).sqrt())).clamp(0, 1)[:, None]
    return frames + edge * (texture - frames)
