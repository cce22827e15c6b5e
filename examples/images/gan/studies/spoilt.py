"""Do the Frechet distances put spoilt pictures in the right order?

    python -m examples.images.gan.studies.spoilt --data FOLDER

Writes gans_measure.md: the distances of spoilt real pictures, which were not among those that they
are measured against, beside those of features of a network that knows whole figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from examples.common.commands import check_count, command, set_threads
from examples.common.files import check_folder, write_text
from examples.common.frechet import frechet_distance
from examples.common.tables import machine, markdown_table
from examples.images.gan.data import Pictured, open_data
from examples.images.gan.measures import Measures, batched, over_spread, some_real
from examples.people.recogniser import shipped

Pictures = Float[Tensor, "n 3 h w"]
PAGE = """\
# What the Frechet distances say of spoilt pictures

At most {pictures} pictures of {size} pixels, of -1 to 1, against as many real ones, in the features
of `examples/images/gan/measures.py`: "form" of a network that finds the key points of heads in any
colours, "colours" the means of 4x4 squares. Precision and recall are of form. "Whole figures" is
the last stage of the recogniser of whole figures, which measured until its order was seen to be
wrong. All are over the spread of real pictures.

{table}

{machine}
"""


def blurred(x: Pictures, sigma: float) -> Pictures:
    """Blur by a Gaussian of so many pixels."""
    at = torch.arange(-4.0, 5.0)
    line = torch.exp(-at.square() / (2 * sigma**2))
    line = (line / line.sum()).expand(3, 1, 1, 9)
    x = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), line, groups=3)
    return F.conv2d(x, line.mT, groups=3)


def noisy(x: Pictures, strength: float) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    return (x + strength * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def in_wrong_quarters(x: Pictures) -> Pictures:
    """Exchange the quarters of each picture across the middle."""
    height, width = x.shape[2:]
    return x.roll((height // 2, width // 2), (2, 3))


def few(x: Pictures, count: int) -> Pictures:
    """Repeat the first pictures: a generator that knows no others."""
    return x[torch.arange(len(x)) % count]


def without_faces(x: Pictures) -> Pictures:
    """Leave of the middle of each picture a smooth stain."""
    height, width = x.shape[2:]
    rows, columns = slice(height // 4, 5 * height // 8), slice(5 * width // 16, 11 * width // 16)
    x = x.clone()
    middle = x[:, :, rows, columns]
    x[:, :, rows, columns] = smooth(F.adaptive_avg_pool2d(middle, 2), middle.shape[2:])
    return x


def stained(x: Pictures) -> Pictures:
    """Lay a stain of one colour over each picture."""
    generator = torch.Generator().manual_seed(0)
    stain = smooth(torch.randn(len(x), 1, 4, 4, generator=generator), x.shape[2:])
    share = (4 * (stain - 0.3)).sigmoid()
    return torch.lerp(x, 2 * torch.rand(len(x), 3, 1, 1, generator=generator) - 1, share)


def bent(x: Pictures) -> Pictures:
    """Bend each picture at random, by a tenth of its side."""
    generator = torch.Generator().manual_seed(0)
    shift = smooth(0.12 * torch.randn(len(x), 2, 5, 5, generator=generator), x.shape[2:])
    straight = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), x.shape, align_corners=False)
    where = straight + rearrange(shift, "b xy h w -> b h w xy")
    return F.grid_sample(x, where, padding_mode="reflection", align_corners=False)


def halves_of_two(x: Pictures) -> Pictures:
    """Join the upper half of each picture and the lower half of another."""
    half = x.shape[2] // 2
    return torch.cat([x[:, :, :half], x.roll(1, 0)[:, :, half:]], dim=2)


def smooth(x: Float[Tensor, "n c k l"], size: torch.Size) -> Float[Tensor, "n c h w"]:
    return F.interpolate(x, size, mode="bicubic", align_corners=False)


def grey(x: Pictures) -> Pictures:
    return x.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def out_of_order(x: Pictures) -> Pictures:
    """Put the pixels of each picture in one random order."""
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return rearrange(x, "b c h w -> b c (h w)")[:, :, order].view_as(x)


SPOILT: dict[str, Callable[[Pictures], Pictures]] = {
    "other real pictures": lambda x: x,
    "blurred by 0.5 pixels": lambda x: blurred(x, 0.5),
    "blurred by 1 pixel": lambda x: blurred(x, 1.0),
    "blurred by 2 pixels": lambda x: blurred(x, 2.0),
    "noise of 0.05": lambda x: noisy(x, 0.05),
    "noise of 0.2": lambda x: noisy(x, 0.2),
    "noise of 0.5": lambda x: noisy(x, 0.5),
    "64 pictures, repeated": lambda x: few(x, 64),
    "16 pictures, repeated": lambda x: few(x, 16),
    "one picture, repeated": lambda x: few(x, 1),
    "faces smoothed out": without_faces,
    "stained": stained,
    "bent": bent,
    "halves of two": halves_of_two,
    "quarters exchanged": in_wrong_quarters,
    "grey": grey,
    "pixels out of order": out_of_order,
}


@dataclass(frozen=True)
class Options:
    """Measure spoilt pictures."""

    data: str  # a folder of drawn figures, or what `train` takes
    out: Path = Path("benchmarks/results")
    pictures: int = 1024
    size: int = 32


def main(options: Options) -> None:
    """Write the table."""
    check_count("--pictures", options.pictures, 2)
    check_folder(options.out)
    set_threads(1)
    found = distances(open_data(options.data, options.size), options.pictures)
    heads = ["pictures", "form", "colours", "precision", "recall", "whole figures"]
    rows = [[name, *(f"{x:.3g}" for x in each.values())] for name, each in found.items()]
    text = PAGE.format(
        pictures=options.pictures,
        size=options.size,
        table=markdown_table(heads, rows),
        machine=machine(),
    )
    write_text(options.out / "gans_measure.md", text)
    print(text)


def distances(pictured: Pictured, count: int) -> dict[str, dict[str, float]]:
    """Return by kind all measures, and the distance by a network that knows whole figures."""
    count = min(count, len(pictured.images) // 2)
    measures = Measures.of(pictured, count)
    real, others = (some_real(pictured, count, skip) for skip in (0, count))
    figures = over_spread(shipped("judge").gist, real)
    known = batched(figures, real)
    found = {}
    for name, spoil in SPOILT.items():
        spoilt = spoil(others)
        whole = frechet_distance(batched(figures, spoilt), known)
        found[name] = {**measures(spoilt), "frechet_figures": whole}
    return found


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
