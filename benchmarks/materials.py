"""What the benchmarks attend over: features of photographs, sound, video and points.

4096 sites with 16 features of one length and values to copy. Nothing was tuned on any but the
astronaut.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from operators import COMPONENTS
from skimage import data
from skimage.transform import resize
from torch import Tensor

import ndgpa

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.audio.files import mono
from examples.audio.spectrum import RATE
from examples.video.clips import read_clip, shipped

ROOT = Path(__file__).parents[1]
SEED, SITES, SIDE = 0, 4096, 64
FRAMES, SMALL_SIDE = 16, 16  # of the clip


@dataclass(frozen=True)
class Material:
    """Features (1, 2, sites, COMPONENTS) of length 1, values, and the space they live in."""

    features: Tensor
    value: Tensor
    space: Callable[[int, int], ndgpa.SpatialStructure]  # of sites a block and blocks a cell


def materials(quick: bool) -> dict[str, Callable[[], Material]]:
    made = {
        "astronaut": lambda: photograph(data.astronaut()),
        "coffee": lambda: photograph(data.coffee()),
        "cat": lambda: photograph(data.chelsea()),
        "rocket": lambda: photograph(data.rocket()),
        "sound": sound,
        "video": clip,
        "points": points,
    }
    return {k: made[k] for k in ("astronaut", "points")} if quick else made


def photograph(picture: np.ndarray, side: int = SIDE) -> Material:
    """5x5 patches of the middle square at 64x64, or of another side."""
    small = small_square(picture, side)

    def space(block: int, cell: int) -> ndgpa.SpatialStructure:
        sides = {1: 1, 4: 2, 16: 4}
        return ndgpa.Image((side, side), sides[block], sides[cell])

    return material_of(patches(small), space)


def small_square(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle square of a picture, made smaller."""
    size = min(picture.shape[:2])
    top, left = ((n - size) // 2 for n in picture.shape[:2])
    picture = picture[top : top + size, left : left + size]
    return resize(picture, (side, side), anti_aliasing=True).astype(np.float32)


def sound(recording: str = "training-1") -> Material:
    """Logarithms of the spectra of 4096 windows of 32 ms, evenly over a recording."""
    wave = mono(ROOT / f"examples/audio/recordings/{recording}.ogg")
    hop, window = (len(wave) - 1) // SITES, int(0.032 * RATE)
    spectra = torch.stft(wave, window, hop, window=torch.hann_window(window), return_complex=True)
    levels = (spectra.abs() + 1e-4).log().mT[:SITES]
    return material_of(levels, lambda block, cell: ndgpa.Sequence(SITES, block, cell))


def points(in_order: bool = False) -> Material:
    """Colours around 4096 random pixels of a stereo picture, which stand where they were seen.

    Args:
        in_order: Number the points along their kd-tree, for methods that take runs of sites.
    """
    left, _, disparity = data.stereo_motorcycle()
    height, width = (n // 4 for n in disparity.shape)
    small = resize(left, (height, width), anti_aliasing=True).astype(np.float32)
    depth = torch.from_numpy(np.ascontiguousarray(disparity[::4, ::4][:height, :width]))
    seen = (depth.isfinite() & (depth > 1)).flatten().nonzero()[:, 0]
    chosen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(SEED))[:SITES]]
    distance = 1 / depth.flatten()[chosen].float()
    row, column = chosen // width, chosen % width
    across, down = column - width / 2, row - height / 2
    place = torch.stack([across * distance, down * distance, 100 * distance], dim=1)
    if in_order:
        order = ndgpa.PointCloud(place, 4).blocks.flatten()
        place, chosen = place[order], chosen[order]

    def space(block: int, cell: int) -> ndgpa.SpatialStructure:
        return ndgpa.PointCloud(place, block, cell)

    return material_of(patches(small)[chosen], space)


def clip(name: str = "bikes") -> Material:
    """5x5 patches of the middle squares of sixteen frames at 16x16, every fourth of a clip."""
    frames = read_clip(shipped(name), SMALL_SIDE).pixels[: 4 * FRAMES : 4]
    left = (frames.shape[3] - SMALL_SIDE) // 2
    frames = frames[..., left : left + SMALL_SIDE]
    rows = torch.cat([patches(frame.permute(1, 2, 0).numpy()) for frame in frames])
    boxes = {1: 1, 4: (1, 2, 2), 16: (1, 4, 4)}

    def space(block: int, cell: int) -> ndgpa.SpatialStructure:
        return ndgpa.Video((FRAMES, SMALL_SIDE, SMALL_SIDE), boxes[block], boxes[cell])

    return material_of(rows, space)


def patches(picture: np.ndarray) -> Tensor:
    """The 5x5 pixels around each pixel."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="reflect")
    return torch.nn.functional.unfold(padded, 5)[0].mT


def material_of(rows: Tensor, space: Callable[[int, int], ndgpa.SpatialStructure]) -> Material:
    """Principal components of one length as features, the rows themselves as values."""
    rows = rows - rows.mean(dim=0)
    directions = torch.linalg.svd(rows, full_matrices=False)[2][:COMPONENTS]
    features = torch.nn.functional.normalize(rows @ directions.mT, dim=1)
    return Material(features.expand(1, 2, -1, -1), rows.expand(1, 2, -1, -1), space)
