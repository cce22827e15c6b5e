"""Photographs from inside the scikit-image wheel, and the task that is made of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from examples.common.untrusted import BadInput, decoding, read_picture

TRAINING = (
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "stereo_motorcycle",
    "camera",
    "coins",
    "brick",
    "grass",
    "gravel",
    "moon",
)
HELD_OUT = ("astronaut", "chelsea", "coffee")
SMALLEST = 64  # pixels of the shorter side of a photograph of one's own


@dataclass(frozen=True)
class Task:
    """A batch of photographs M, the source, and what is to be made, tau(M), the target.

    A network may see `source` and `degraded`, the target made small and grey.
    """

    source: Float[Tensor, "b 3 h w"]
    target: Float[Tensor, "b 3 h w"]
    degraded: Float[Tensor, "b 1 l k"]
    theta: Float[Tensor, "b 2 3"]


def make_task(source: Float[Tensor, "b 3 h w"], theta: Float[Tensor, "b 2 3"], factor: int) -> Task:
    """Distort, then degrade `factor` times."""
    target = distort(source, theta)
    return Task(source, target, degrade(target, factor), theta)


def random_theta(
    batch: int, generator: torch.Generator, noise: float = 0.15
) -> Float[Tensor, "batch 2 3"]:
    """Add uniform noise to all six entries of the identity, in coordinates from -1 to 1.

    Source: Section 3.1 of Jetchev et al. 2021.
    """
    return torch.eye(2, 3) + noise * (2 * torch.rand(batch, 2, 3, generator=generator) - 1)


def distort(
    image: Float[Tensor, "b 3 h w"], theta: Float[Tensor, "b 2 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Apply tau: the pixel at x becomes the image's at theta x, black where that is outside."""
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def degrade(image: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, "b 1 l k"]:
    """Make grey and `factor` times smaller, by means over squares; `factor` divides both sides."""
    return F.avg_pool2d(grey(image), factor)


def grey(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Compute Rec. 601 luma."""
    weight = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (image * weight).sum(dim=1, keepdim=True)


def random_views(
    photos: list[Float[Tensor, "3 h w"]], batch: int, size: int, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    """Draw squares of random photographs, brought to one size, turned and tinted."""
    views = []
    for _ in range(batch):
        pick, side, top, left, turns, flip = torch.rand(6, generator=generator).tolist()
        photo = photos[int(pick * len(photos))]
        _, h, w = photo.shape
        longest = min(h, w)
        side = round(min(size, longest) + side * (longest - min(size, longest)))
        top, left = int(top * (h - side + 1)), int(left * (w - side + 1))
        view = resize(photo[:, top : top + side, left : left + side], (size, size))
        view = view.rot90(int(turns * 4), (1, 2))
        view = view.flip(2) if flip < 0.5 else view
        gamma, tint = torch.rand(2, 3, 1, 1, generator=generator)
        channels = torch.randperm(3, generator=generator)
        views.append(view[channels] ** (0.7 + 0.6 * gamma) * (0.8 + 0.2 * tint))
    return torch.stack(views)


def held_out_view(photo: Float[Tensor, "3 h w"], size: int) -> Float[Tensor, "3 size size"]:
    """Cut out the square in the middle and bring it to `size`."""
    side = min(photo.shape[1:])
    top, left = (photo.shape[1] - side) // 2, (photo.shape[2] - side) // 2
    return resize(photo[:, top : top + side, left : left + side], (size, size))


def resize(image: Float[Tensor, "3 h w"], shape: tuple[int, int]) -> Float[Tensor, "3 h_new w_new"]:
    return F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0].clamp(0, 1)


def load_photo(name: str) -> Float[Tensor, "3 h w"]:
    """Load a photograph of scikit-image by name, from 0 to 1."""
    pixels = getattr(skimage.data, name)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # of a stereo pair, the left
    return _as_photo(pixels / np.float32(255))


def read_photo(path: Path) -> Float[Tensor, "3 h w"]:
    """Read a photograph of one's own: grey becomes grey in three channels, alpha goes onto white.

    Raises:
        BadInput: The file is missing, damaged, no picture, too large or too small.
    """
    picture = read_picture(path)
    deep = picture.mode.startswith("I")  # 16 bits of grey
    with decoding(path, "a picture"):
        pixels = np.asarray(picture if deep else picture.convert("RGBA"))
    if min(pixels.shape[:2]) < SMALLEST:
        raise BadInput(
            f"--image {path} is {pixels.shape[1]}x{pixels.shape[0]} pixels; the shorter side needs "
            f"at least {SMALLEST}"
        )
    return _as_photo(pixels / np.float32(65535 if deep else 255))


def _as_photo(pixels: np.ndarray) -> Tensor:  # (h, w) or (h, w, channels) -> (3, h, w)
    photo = torch.from_numpy(np.atleast_3d(pixels).astype(np.float32)).clamp(0, 1)
    photo = rearrange(photo, "h w c -> c h w")
    if len(photo) == 4:
        photo = photo[:3] * photo[3:] + (1 - photo[3:])
    return photo.expand(3, -1, -1).contiguous()
