"""What is trained on and what is held out, and the damage that is done to both.

Shapes: t frames, h w pixels of a picture, H W of the larger one that a camera moves over.
"""

from dataclasses import dataclass
from itertools import pairwise

import skimage.data
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.video.clips import read_clip, shipped

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")
TRAINING_CLIP = "bikes"
HELD_OUT = ("bigbuckbunny", "carphone_pristine")
SCENE_SIDE = 144  # pixels of the shorter side of what the training camera moves over


@dataclass(frozen=True)
class Problem:
    """A clip with holes; what is not known is 0 in `damaged`."""

    truth: Float[Tensor, "t 3 h w"]
    known: Bool[Tensor, "t 1 h w"]

    @property
    def damaged(self) -> Float[Tensor, "t 3 h w"]:
        return self.truth * self.known


@dataclass(frozen=True)
class Damage:
    """What is put onto a clip.

    Args:
        smudges: Spots that stay where they are on the picture, as dirt on the lens does.
        passers: Spots that cross it in a quarter of the clip.
        runs: Runs of frames that are lost.
        longest_run: Frames.
        spot: Least and largest diameter of a spot, in parts of the shorter side.
    """

    smudges: int = 2
    passers: int = 2
    runs: int = 2
    longest_run: int = 3
    spot: tuple[float, float] = (0.2, 0.32)


TRAINING = Damage(runs=1)
MOVING_CAMERA = Damage()
STILL_CAMERA = Damage(smudges=0, passers=6)  # behind a smudge there would be nothing to find


# Scenes


def training_scenes() -> list[Float[Tensor, "t 3 H W"]]:
    """Photographs, as clips of one frame, and the shots of the training clip."""
    photographs = [_small(_photograph(name)) for name in PHOTOGRAPHS]
    return photographs + shots(read_clip(shipped(TRAINING_CLIP), SCENE_SIDE).pixels)


def shots(frames: Float[Tensor, "t 3 h w"], cut: float = 0.12) -> list[Float[Tensor, "s 3 h w"]]:
    """The clip between its cuts: where frames differ more than `cut`, and more than about them."""
    change = frames.diff(dim=0).abs().mean(dim=(1, 2, 3))
    around = F.max_pool1d(F.pad(change[None], (2, 2)), 2, 1)[0]  # of the two before, the two after
    cuts = (change > cut) & (change > 2 * torch.maximum(around[:-3], around[3:]))
    edges = [0, *(cuts.nonzero()[:, 0] + 1).tolist(), len(frames)]
    return [frames[a:b] for a, b in pairwise(edges)]


def _photograph(name: str) -> Float[Tensor, "1 3 H W"]:
    pixels = torch.from_numpy(getattr(skimage.data, name)())[..., :3] / 255
    return rearrange(pixels, "h w c -> 1 c h w")


def _small(frames: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 H W"]:
    scale = SCENE_SIDE / min(frames.shape[2:])
    size = [round(x * scale) for x in frames.shape[2:]]
    return F.interpolate(frames, size, mode="bilinear", antialias=True).clamp(0, 1)


# Camera


def film(
    scene: Float[Tensor, "t 3 H W"], path: Float[Tensor, "t 2"], side: int, zoom: float = 1.0
) -> Float[Tensor, "t 3 side side"]:
    """Square pictures whose upper left corner stands at `path`, (x, y) in pixels of the scene.

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
    """A pan that turns back at the borders of the room (x, y), and a shaking hand.

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


# Damage


def damage(
    frames: int, side: int, what: Damage, generator: torch.Generator
) -> Bool[Tensor, "t 1 side side"]:
    """What is still known."""
    known = torch.ones(frames, 1, side, side, dtype=torch.bool)
    for number in range(what.smudges + what.passers):
        known &= ~_spot(frames, side, what, number >= what.smudges, generator)
    for _ in range(what.runs):
        length, place = torch.rand(2, generator=generator).tolist()
        length = 1 + int(length * what.longest_run)
        first = 1 + int(place * max(1, frames - length - 1))
        known[first : min(first + length, frames - 1)] = False
    return known


def _spot(
    frames: int, side: int, what: Damage, moves: bool, generator: torch.Generator
) -> Bool[Tensor, "t 1 side side"]:
    width, height, x, y, dx, dy, begin = torch.rand(7, generator=generator).tolist()
    least, largest = what.spot
    radius = [side / 2 * (least + u * (largest - least)) for u in (width, height)]
    time = torch.linspace(0, 1, frames)[:, None, None]
    centre = [side * (0.15 + 0.7 * u) for u in (x, y)]
    if moves:
        begin = 0.75 * begin
        centre = [
            c + 2 * side * (u - 0.5) * (time - begin - 0.125) for c, u in zip(centre, (dx, dy))
        ]
    pixel = torch.arange(side) + 0.5
    x_off = (pixel[None, None, :] - centre[0]) / radius[0]
    y_off = (pixel[None, :, None] - centre[1]) / radius[1]
    inside = (x_off**2 + y_off**2 < 1).expand(frames, -1, -1)
    if moves:
        inside = inside & (time >= begin) & (time < begin + 0.25)
    return inside[:, None]


# Problems


def draw_problem(
    scenes: list[Float[Tensor, "s 3 H W"]], frames: int, side: int, generator: torch.Generator
) -> Problem:
    """A scene under a moving camera, often with a piece of another one gliding across it."""
    pick, speed, shake, zoom, still = torch.rand(5, generator=generator).tolist()
    scene = _stretch(scenes[int(pick * len(scenes))], frames, generator)
    zoom = 0.8 + 0.4 * zoom
    room = tuple(size - zoom * side for size in (scene.shape[3], scene.shape[2]))
    still = still < 0.25
    speed, shake = (0.0, 0.0) if still else (4 * speed * zoom, shake * zoom)
    truth = film(scene, wander(frames, room, speed, shake, generator), side, zoom)
    truth = _passer(truth, scenes, generator)
    truth = truth[:, torch.randperm(3, generator=generator)]
    return Problem(truth, damage(frames, side, TRAINING, generator))


def _stretch(
    scene: Float[Tensor, "s 3 H W"], frames: int, generator: torch.Generator
) -> Float[Tensor, "frames 3 H W"]:
    """So many frames of a scene: a photograph stands still, a short shot runs to and fro."""
    start, back = torch.rand(2, generator=generator).tolist()
    number = torch.arange(frames) + int(start * max(1, len(scene) - frames))
    period = max(1, 2 * (len(scene) - 1))
    number = (number % period).minimum(period - number % period)
    return scene[number.flip(0) if back < 0.5 else number]


def _passer(
    frames: Float[Tensor, "t 3 h w"],
    scenes: list[Float[Tensor, "s 3 H W"]],
    generator: torch.Generator,
) -> Float[Tensor, "t 3 h w"]:
    """An ellipse cut out of a scene moves over the clip at its own speed."""
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


def held_out_problem(name: str, moves: bool, frames: int, side: int, seed: int = 7) -> Problem:
    """A clip that was not trained on, damaged.

    Its shorter side is one and a half times the picture's, and a camera pans over it; or the
    camera stands still, and the picture is its middle, as large as the shorter side.
    """
    generator = torch.Generator().manual_seed(seed)
    clip = read_clip(shipped(name), side * 3 // 2 if moves else side, most=frames).pixels
    clip = clip[_to_and_fro(len(clip), frames)]
    room = (clip.shape[3] - side, clip.shape[2] - side)
    path = wander(frames, room, 1.5, 0.5, generator)
    if not moves:
        path = torch.tensor(room).float().div(2).round().expand(frames, -1)
    what = MOVING_CAMERA if moves else STILL_CAMERA
    return Problem(film(clip, path, side), damage(frames, side, what, generator))


def _to_and_fro(length: int, frames: int) -> Int[Tensor, " frames"]:
    period = max(1, 2 * (length - 1))
    number = torch.arange(frames) % period
    return number.minimum(period - number)
