"""Show where a morph was copied from: lines from its pixels to their keys in the source.

    python -m examples.images.pose_morphing.studies.lines 12 40 --model runs/gpa --data FOLDER
    python -m examples.images.pose_morphing.studies.lines 12 40 --model runs/gpa --data FOLDER \\
        --pixels 60,30 80,35

SOURCE and POSE are as for morph.py. Opacity is a key's weight; a pixel that copies from one place
has one line. Without --pixels some key points of the pose are followed, those that are seen.

Source: Figure 9 of Jetchev et al. 2021.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.commands import command
from examples.common.files import replacing
from examples.images.pose_morphing.measures.scores import keys_and_weights, places_of, sites_of
from examples.images.pose_morphing.measures.sheet import check_picture_name
from examples.images.pose_morphing.measures.tasks import in_unit_range
from examples.images.pose_morphing.morph import Answer, Question, answer
from examples.people.keypoints import NAMES
from ndgpa.analysis import draw_key_lines

FOLLOWED = ("neck", "nose", "rwri", "lwri", "rhip", "lhip", "rkne", "lkne")
HEIGHT_IN = 8.0  # of the figure, in inches


@dataclass(frozen=True)
class Options(Question):
    """Show where a morph was copied from."""

    pixels: tuple[str, ...] = ()  # ROW,COLUMN of the output
    out: Path = Path("lines.png")


@dataclass(frozen=True)
class Lines:
    """Keys of some pixels, at the finest level."""

    size: tuple[int, int]  # of the level
    queries: Int[Tensor, " s"]
    keys: Int[Tensor, "s y"]
    weights: Float[Tensor, "s y"]


def lines_of(found: Answer, places: Float[Tensor, "s 2"]) -> Lines:
    """The keys that the finest attention reads for pixels of the output, (row, column)."""
    if not found.morph.levels:
        raise ValueError("this generator has no attention to show")
    level = found.morph.levels[0]
    size = found.morph.image.shape[2], found.morph.image.shape[3]
    queries = sites_of(places, size, level.size)
    return Lines(level.size, queries, *keys_and_weights(level, 0, queries))


def read_pixels(texts: tuple[str, ...], size: tuple[int, int]) -> Float[Tensor, "s 2"]:
    """Rows and columns from the command line.

    Raises:
        ValueError: One is no pixel of the picture.
    """
    places = []
    for text in texts:
        row, _, column = text.partition(",")
        inside = (
            row.isdecimal() and column.isdecimal() and int(row) < size[0] and int(column) < size[1]
        )
        if not inside:
            raise ValueError(
                f"--pixels has {text!r}; expected ROW,COLUMN within {size[0]}x{size[1]} pixels"
            )
        places.append([float(row), float(column)])
    return torch.tensor(places).reshape(-1, 2)


def followed(points: Float[np.ndarray, "18 3"]) -> Float[Tensor, "s 2"]:
    """Rows and columns of the key points to follow, of those that are seen."""
    chosen = points[[NAMES.index(name) for name in FOLLOWED]]
    return torch.from_numpy(chosen[chosen[:, 2] > 0][:, [1, 0]]).float()


def read_by(weights: Float[Tensor, "s y"]) -> Float[Tensor, " s"]:
    """How many keys each query reads, if they all counted alike: exp of the entropy."""
    return torch.special.entr(weights).sum(dim=1).exp()


def draw(found: Answer, lines: Lines, path: Path) -> None:
    """The output on the left, the source on the right, both at the size of the level."""
    output, source = (
        F.adaptive_avg_pool2d(in_unit_range(x), lines.size)[0]
        for x in (found.morph.image, found.source.pixels)
    )
    width = HEIGHT_IN * 2 * lines.size[1] / lines.size[0]
    figure = Figure(figsize=(width, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    draw_key_lines(axes, output, source, lines.queries, lines.keys, lines.weights)
    axes.set_title("the output (left), and where its pixels are read in the source (right)")
    with replacing(path) as part:
        figure.savefig(part, dpi=100, format=path.suffix.removeprefix("."))


def table(lines: Lines, size: tuple[int, int]) -> str:
    """A line for each pixel: its strongest key, that key's weight, how many are read."""
    best = lines.weights.argmax(dim=1, keepdim=True)
    keys = places_of(lines.keys.gather(1, best)[:, 0], size, lines.size).round().int().tolist()
    queries = places_of(lines.queries, size, lines.size).round().int().tolist()
    rows = zip(queries, keys, lines.weights.amax(dim=1).tolist(), read_by(lines.weights).tolist())
    texts = [
        f"{query[0]:4d},{query[1]:<4d} from {key[0]:4d},{key[1]:<4d} {weight:6.3f} {count:6.1f}"
        for query, key, weight, count in rows
    ]
    return "\n".join(["    pixel  strongest key  weight   keys", *texts])


def main(options: Options) -> None:
    check_picture_name(options.out)
    found = answer(options)
    size = found.morph.image.shape[2], found.morph.image.shape[3]
    places = read_pixels(options.pixels, size) if options.pixels else followed(found.points)
    lines = lines_of(found, places)
    draw(found, lines, options.out)
    print(table(lines, size))
    print(f"{options.out} shows the keys of {len(places)} pixels")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
