"""How well do key points say which place of the body a pixel shows? A bound for the networks.

    python -m examples.images.pose_morphing.studies.ambiguity --data data/large

A small network learns, from drawn figures, to tell from where a pixel lies between the key points
(`body.py`), from the whole pose, and from the true part of the body, the point of the part's
surface that the pixel shows. It sees no picture. Then each pixel of the target is looked up in the
source: the pixel of the same part whose surface point is the nearest. With the true points of both
that finds the true place; with those that were told it is off by as much as key points leave open.
The generator has to find the part by itself, but sees the source, and with it how wide the body is.
Writes ambiguity.json and ambiguity.md: distances in pixels of the data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import trange

from examples.common.commands import check_count, check_seed, command, set_threads
from examples.common.files import check_folder, write_json, write_text
from examples.common.schedule import warm_up_cosine
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing.body import CHANNELS, POSE, coordinates, pose
from examples.images.pose_morphing.figures import HERE
from examples.people.figures.body import PARTS
from examples.people.figures.cache import Figures
from examples.people.figures.truth import Truth

INPUTS = 1 + len(PARTS) + CHANNELS + POSE
HIDDEN = 256
BATCH = 2048  # pixels
PIXELS = 64  # of each picture that is learnt from
LEARNING_RATE = 2e-3
NEAR_PX = (3, 6)


@dataclass(frozen=True)
class Options:
    """What is learnt from, and what is asked."""

    data: Path  # a folder of drawn figures with their truth
    out: Path = HERE / "results"
    pictures: int = 6000  # of the training split, at most
    steps: int = 6000
    pairs: int = 96  # of the test split
    pixels: int = 300  # of each
    seed: int = 77
    threads: int = 0  # of torch; 0: as it chooses


def main(options: Options) -> None:
    """Train, look up, write.

    Raises:
        ValueError: The data has no truth.
    """
    check_folder(options.out)
    for name in ("pictures", "steps", "pairs", "pixels"):
        check_count(f"--{name}", getattr(options, name))
    check_seed(options.seed)
    set_threads(options.threads)
    train, test = (Figures(options.data, split) for split in ("train", "test"))
    if not train.options["truth"]:
        raise ValueError(f"{options.data} holds figures without their truth")
    torch.manual_seed(options.seed)
    draws = np.random.default_rng(options.seed)
    told = trained(*examples(train, options.pictures, draws), options.steps)
    rows = {
        "true": found(test, options, lambda picture: true_points(test, picture)),
        "told": found(test, options, lambda picture: told_points(test, picture, told)),
    }
    said = {"machine": machine(), "data": train.options, "steps": options.steps, "rows": rows}
    write_json(options.out / "ambiguity.json", said)
    write_text(options.out / "ambiguity.md", as_markdown(rows))


def trained(inputs: Float[Tensor, "n i"], points: Float[Tensor, "n 3"], steps: int) -> nn.Module:
    """Learn to tell surface points, by the distance from the true ones."""
    spread = points.std()
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)]
    hidden = [x for layer in layers for x in (layer, nn.GELU())]
    network = nn.Sequential(*hidden, nn.Linear(HIDDEN, 3))
    optimizer = torch.optim.Adam(network.parameters())
    for step in trange(steps, desc="surface points", disable=None):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm_up_cosine(step, steps)
        drawn = torch.randint(len(inputs), (BATCH,))
        error = network(inputs[drawn]) - points[drawn] / spread
        optimizer.zero_grad()
        error.norm(dim=1).mean().backward()
        optimizer.step()
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(spread)
        last.bias.mul_(spread)
    return network


def examples(
    figures: Figures, pictures: int, draws: np.random.Generator
) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n 3"]]:
    """Draw pixels of people from pictures in random order: what is known, and what they show."""
    inputs, points = [], []
    for picture in draws.permutation(len(figures.part))[:pictures].tolist():
        on_person = np.flatnonzero(figures.part[picture])
        if len(on_person):
            pixels = torch.from_numpy(draws.choice(on_person, PIXELS))
            inputs.append(known(figures, picture, pixels))
            points.append(true_points(figures, picture)[pixels])
    return torch.cat(inputs), torch.cat(points)


def known(figures: Figures, picture: int, pixels: Int[Tensor, " p"]) -> Float[Tensor, "p i"]:
    """The part of each pixel, where it lies between the key points, and the pose."""
    h, w = figures.part.shape[1:]
    x, y, seen = torch.from_numpy(np.array(figures.points[picture])).unbind(dim=1)
    there = (seen > 0).float()
    points = torch.stack([(2 * x + 1 - w) / h, (2 * y + 1 - h) / h, torch.ones_like(x)], dim=1)
    points = (points * there[:, None])[None]
    part = torch.from_numpy(np.array(figures.part[picture])).flatten()[pixels]
    place = coordinates(points, (h, w))[0].flatten(1)[:, pixels].T
    one_hot = F.one_hot(part.long(), 1 + len(PARTS))
    return torch.cat([one_hot, place, pose(points).expand(len(pixels), -1)], dim=1)


def true_points(figures: Figures, picture: int) -> Float[Tensor, "hw 3"]:
    return torch.from_numpy(np.array(figures.local[picture], np.float32)).flatten(0, 1)


@torch.no_grad()
def told_points(figures: Figures, picture: int, told: nn.Module) -> Float[Tensor, "hw 3"]:
    """Tell the points of the person's pixels; 0 elsewhere."""
    on_person = torch.from_numpy(np.flatnonzero(figures.part[picture]))
    points = torch.zeros(figures.part[picture].size, 3)
    points[on_person] = told(known(figures, picture, on_person))
    return points


def found(
    figures: Figures, options: Options, points_of: Callable[[int], Float[Tensor, "hw 3"]]
) -> dict[str, float]:
    """Look pixels of the targets up in the sources, and say how far off their places are."""
    draws = np.random.default_rng(options.seed)
    truth, width = Truth(figures), figures.part.shape[2]
    off = []
    for source, target in figures.pairs[draws.permutation(len(figures.pairs))[: options.pairs]]:
        places, copyable = truth.correspond(int(source), int(target))
        sites = np.flatnonzero(copyable & (figures.part[target] > 0))
        if not len(sites):
            continue
        sites = draws.choice(sites, options.pixels)
        wanted = points_of(int(target))[sites]
        match = nearest(wanted, points_of(int(source)), figures, int(source), int(target), sites)
        at = np.stack([match // width, match % width], axis=1)
        off.append(np.linalg.norm(at - places.reshape(-1, 2)[sites], axis=1))
    every = np.concatenate(off)
    shares = {f"within {px} px": (every <= px).mean().item() for px in NEAR_PX}
    return {"median px": np.median(every).item(), **shares}


def nearest(
    wanted: Float[Tensor, "p 3"],
    held: Float[Tensor, "hw 3"],
    figures: Figures,
    source: int,
    target: int,
    sites: Int[np.ndarray, " p"],
) -> Int[np.ndarray, " p"]:
    """Find for each point the pixel of the source, of the same part, whose point is nearest."""
    of_source, of_target = (
        torch.from_numpy(np.array(figures.part[picture])).flatten() for picture in (source, target)
    )
    other = of_source != of_target[sites][:, None]
    return torch.cdist(wanted, held).masked_fill(other, torch.inf).argmin(dim=1).numpy()


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    heads = ["surface points", *next(iter(rows.values()))]
    table = markdown_table(
        heads, [[name, *(f"{x:.3f}" for x in of.values())] for name, of in rows.items()]
    )
    return f"{__doc__}\n{machine()}.\n\n{table}\n"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
