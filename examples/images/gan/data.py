"""Pictures to imitate, all in memory: drawn heads, patches of photographs, or a folder of your own.

A folder holds pictures, or folders of pictures, which are its classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor

from examples.common.untrusted import BadInput, read_picture
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures

NOSE, NECK, EARS = 0, 1, (16, 17)  # numbers of key points
HEAD = 2.2  # side of the square around a head, over the distance from nose to neck
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
PATCHES = 2000  # of each photograph

Square = tuple[int, int, int, int]  # number of the picture, left, top and side


@dataclass(frozen=True)
class Pictured:
    """All pictures of one size, and the class of each."""

    images: UInt8[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classes: int
    mirrored: tuple[int, ...] | None = None  # the class of each class in a mirror; None: itself

    def draw(self, count: int, mirror: bool = True) -> tuple[Tensor, Tensor]:
        """Draw pictures, in -1 to 1, by torch's generator; half of them mirrored."""
        chosen = torch.randint(len(self.images), (count,))
        pictures, labels = self.images[chosen].float() / 127.5 - 1, self.labels[chosen]
        if mirror:
            flipped = torch.rand(count) < 0.5
            pictures = torch.where(flipped[:, None, None, None], pictures.flip(3), pictures)
            others = torch.tensor(self.mirrored or range(self.classes))
            labels = torch.where(flipped, others[labels], labels)
        return pictures, labels


def open_data(name: str, size: int, split: str = "train") -> Pictured:
    """Open `photographs`, a folder of drawn figures, or a folder of pictures.

    Args:
        name: What.
        size: Side to bring the pictures to.
        split: Which part of drawn figures: train, validation or test. The others have one part.

    Raises:
        BadInput: It is none of these, holds no picture, or a picture cannot be read.
    """
    if name == "photographs":
        return photographs(size)
    folder = Path(name)
    if not folder.is_dir():
        raise BadInput(f"{name} is neither a folder nor the word photographs")
    if (folder / "figures.json").is_file():
        return heads(open_pictures(folder, split), size)
    return files(folder, size)


def heads(people: Pictures, size: int) -> Pictured:
    """Cut out the heads; the class says where a head looks: left, ahead, right, or away."""
    squares = squares_of_heads(people, size)
    labels = torch.tensor([_facing(people.points[i]) for i, *_ in squares])
    return Pictured(cut_out(people, squares, size), labels, 4, mirrored=(2, 1, 0, 3))


def squares_of_heads(people: Pictures, size: int) -> list[Square]:
    """List the squares around the heads of at least half of `size`.

    Raises:
        BadInput: There is none.
    """
    squares = [(i, *_square(people.points[i], people.size)) for i in range(len(people))]
    found = [one for one in squares if 2 * one[3] >= size]
    if not found:
        raise BadInput("these people have no head that is large enough in the picture")
    return found


def cut_out(people: Pictures, squares: list[Square], size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Cut squares out of pictures, and bring them to one size."""
    images = torch.from_numpy(np.stack([_cut(people, size, *one) for one in squares]))
    return images.permute(0, 3, 1, 2).contiguous()


def _cut(people: Pictures, size: int, i: int, left: int, top: int, side: int) -> np.ndarray:
    square = Image.fromarray(people.image(i)[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def _square(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return left, top and side of the square around a head; side 0: it is not on the picture."""
    ears = [points[e] for e in (NOSE, *EARS) if points[e, 2] > 0]
    if points[NECK, 2] == 0 or not ears:
        return 0, 0, 0
    centre = np.mean([p[:2] for p in ears], axis=0)
    reach = max(4.0, HEAD / 2 * float(np.linalg.norm(centre - points[NECK, :2])))
    left, top = (round(float(c - reach)) for c in centre)
    side = round(2 * reach)
    within = min(left, top) >= 0 and left + side <= size[1] and top + side <= size[0]
    return left, top, side if within else 0


def _facing(points: np.ndarray) -> int:
    """0: to the left of the picture, 1: ahead, 2: to the right, 3: away."""
    if points[NOSE, 2] == 0:
        return 3
    seen = [points[e, 2] > 0 for e in EARS]
    if all(seen) or not any(seen):
        return 1
    ear = points[EARS[seen.index(True)], 0]
    return 0 if points[NOSE, 0] < ear else 2


def photographs(size: int) -> Pictured:
    """Random squares of four photographs, each of which is a class."""
    generator = np.random.default_rng(0)
    images, labels = [], []
    for label, name in enumerate(PHOTOGRAPHS):
        picture = getattr(data, name)()
        for _ in range(PATCHES):
            side = int(generator.integers(size, 3 * size))
            top, left = (int(generator.integers(0, n - side)) for n in picture.shape[:2])
            square = Image.fromarray(picture[top : top + side, left : left + side])
            images.append(np.asarray(square.resize((size, size), Image.Resampling.BOX)))
            labels.append(label)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Pictured(stacked, torch.tensor(labels), len(PHOTOGRAPHS))


def files(folder: Path, size: int) -> Pictured:
    """All pictures of a folder, or of its folders, cut to a square and brought to one size."""
    classes = sorted(f for f in folder.iterdir() if f.is_dir()) or [folder]
    images, labels = [], []
    for label, inner in enumerate(classes):
        names = sorted(f for f in inner.iterdir() if f.suffix.lower() in SUFFIXES)
        if not names:
            raise BadInput(f"{inner} holds no picture ({', '.join(SUFFIXES)})")
        images += [_read(name, size) for name in names]
        labels += [label] * len(names)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Pictured(stacked, torch.tensor(labels), len(classes))


def _read(file: Path, size: int) -> np.ndarray:
    picture = read_picture(file).convert("RGB")
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))
