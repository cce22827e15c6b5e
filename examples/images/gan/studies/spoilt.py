"""Does the Frechet distance put spoilt pictures in the right order?

    python -m examples.images.gan.studies.spoilt --data FOLDER

Writes gans_measure.md: the distance of spoilt real pictures, which were not among those that it
is measured against, beside that of features of all stages of the same network.
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
from examples.images.gan.measures import Measures, batched, precision_recall, some_real
from examples.people.recogniser import shipped

Pictures = Float[Tensor, "n 3 h w"]


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
    rows = distances(open_data(options.data, options.size), options.pictures)
    heads = ["pictures", "Frechet", "all stages", "precision", "recall"]
    table = markdown_table(
        heads, [[name, *(f"{x:.3g}" for x in found)] for name, found in rows.items()]
    )
    text = "\n".join(
        [
            "# What the Frechet distance says of spoilt pictures",
            "",
            f"At most {options.pictures} pictures of {options.size} pixels, of -1 to 1, against as "
            "many real ones. Features are those of",
            "`examples/images/gan/measures.py`: the last stage of the recogniser over the spread "
            "of real pictures; beside it",
            "those of all stages, without a scale. Precision and recall are of the last stage.",
            "",
            table,
            "",
            machine(),
            "",
        ]
    )
    write_text(options.out / "gans_measure.md", text)
    print(text)


def distances(pictured: Pictured, count: int) -> dict[str, tuple[float, float, float, float]]:
    """Return by kind the distance, that of all stages, precision and recall."""
    count = min(count, len(pictured.images) // 2)
    measures, judge = Measures.of(pictured, count), shipped("judge")
    plain = batched(judge.means, some_real(pictured, count))
    others = some_real(pictured, count, skip=count)
    found = {}
    for name, spoil in SPOILT.items():
        features, raw = (batched(f, spoil(others)) for f in (measures.features, judge.means))
        found[name] = (
            frechet_distance(features, measures.real),
            frechet_distance(raw, plain),
            *precision_recall(measures.real, features),
        )
    return found


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
