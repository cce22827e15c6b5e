"""What is trained on and what is held out, filmed and damaged.

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
from examples.video.damage import MOVING_CAMERA, STILL_CAMERA, TRAINING, damage
from examples.video.filming import film, wander, with_passer

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


# Scenes


def training_scenes() -> list[Float[Tensor, "t 3 H W"]]:
    """Load photographs, as clips of one frame, and the shots of the training clip."""
    photographs = [_small(_photograph(name)) for name in PHOTOGRAPHS]
    return photographs + shots(read_clip(shipped(TRAINING_CLIP), SCENE_SIDE).pixels)


def shots(frames: Float[Tensor, "t 3 h w"], cut: float = 0.12) -> list[Float[Tensor, "s 3 h w"]]:
    """Split the clip at its cuts: where frames differ more than `cut`, and more than about them."""
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


# Problems


def draw_problem(
    scenes: list[Float[Tensor, "s 3 H W"]], frames: int, side: int, generator: torch.Generator
) -> Problem:
    """Film a scene with a moving camera, often with a piece of another one gliding across it."""
    pick, speed, shake, zoom, still = torch.rand(5, generator=generator).tolist()
    scene = _stretch(scenes[int(pick * len(scenes))], frames, generator)
    zoom = 0.8 + 0.4 * zoom
    room = tuple(size - zoom * side for size in (scene.shape[3], scene.shape[2]))
    still = still < 0.25
    speed, shake = (0.0, 0.0) if still else (4 * speed * zoom, shake * zoom)
    truth = film(scene, wander(frames, room, speed, shake, generator), side, zoom)
    truth = with_passer(truth, scenes, generator)
    truth = truth[:, torch.randperm(3, generator=generator)]
    return Problem(truth, damage(frames, side, TRAINING, generator))


def _stretch(
    scene: Float[Tensor, "s 3 H W"], frames: int, generator: torch.Generator
) -> Float[Tensor, "frames 3 H W"]:
    """Take so many frames of a scene: a photograph stands still, a short shot runs to and fro."""
    start, back = torch.rand(2, generator=generator).tolist()
    number = torch.arange(frames) + int(start * max(1, len(scene) - frames))
    period = max(1, 2 * (len(scene) - 1))
    number = (number % period).minimum(period - number % period)
    return scene[number.flip(0) if back < 0.5 else number]


def held_out_problem(name: str, moves: bool, frames: int, side: int, seed: int = 7) -> Problem:
    """Damage a clip that was not trained on.

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
