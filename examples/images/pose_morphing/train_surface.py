"""Train the network of `surface.py`.

    python -m examples.images.pose_morphing.train_surface --data FOLDER --out FOLDER

Drawn figures know the part of the body and the surface point of every pixel. Each is shown as it
is and in a mirror, and some pictures of a step are distorted, for people who were not drawn. A run
that was killed goes on with the same bits. At the end the weights are written to
weights.safetensors in 16 bits, and what they know of held-out people to held_out.json.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from examples.common.commands import check_count, check_seed, command, set_threads
from examples.common.files import write_json, write_tensors
from examples.common.loop import descend, run
from examples.common.schedule import warm_up_cosine
from examples.images.pose_morphing.data import random_affine
from examples.images.pose_morphing.surface import (
    FLIP,
    OTHER_SIDE,
    RAY,
    SPREAD,
    Surface,
    in_mirror,
    use_surface,
)
from examples.people.figures.cache import Figures

ON_PERSON, NEAR_PERSON, ANYWHERE = 256, 48, 48  # pixels that are drawn of each picture
PIXELS = 36  # of those, in a step
REACH = 1 / 32  # of what is near, in heights of the picture
DISTORTED = 0.125  # of the pictures in a step
BETAS = (0.9, 0.99)
WARM_UP = 100  # steps
POINTS = 2.0  # weight of the error of surface points, in spreads; that of parts counts 1
HEIGHT_PX = 250  # of a body, in a picture of 256 rows


@dataclass(frozen=True)
class Options:
    """Train the network that knows where on the body a pixel is."""

    data: Path  # drawn figures with their truth
    out: Path
    start: Path | None = None  # weights to go on from
    steps: int = 16000
    batch: int = 128  # pictures
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Shown:
    """Pixels of pictures, and what they show; lengths as in `body.py`."""

    points: Float[Tensor, "n 18 3"]
    across: Float[Tensor, "n p"]
    down: Float[Tensor, "n p"]
    part: Int[Tensor, "n p"]
    place: Float[Tensor, "n p 3"]  # in spreads

    def some(self, batch: int) -> "Shown":
        """Draw pictures, and pixels of them, the same of each."""
        rows = torch.randint(len(self.points), (batch,))
        pixels = torch.randperm(self.part.shape[1])[:PIXELS]
        names = ("across", "down", "part", "place")
        return Shown(self.points[rows], *(getattr(self, name)[rows][:, pixels] for name in names))


def main(options: Options) -> Surface:
    """Train, write the weights and what they know of held-out people."""
    check_count("--steps", options.steps)
    check_count("--batch", options.batch)
    check_seed(options.seed)
    set_threads(options.threads)
    shown = drawn(options.data, "train", options.seed, mirrored=True)
    held_out = drawn(options.data, "test", options.seed)
    torch.manual_seed(options.seed)
    network = Surface()
    if options.start:
        use_surface(network, options.start)
    optimizer = torch.optim.Adam(network.parameters(), betas=BETAS)

    def advance(step: int) -> dict[str, float]:
        rate = options.learning_rate * warm_up_cosine(step, options.steps, WARM_UP)
        part = shown.some(options.batch)
        terms = losses(network, distorted(part, some_of(random_affine(options.batch))))
        return descend(optimizer, terms, rate)

    said = {"batch": options.batch, "learning_rate": options.learning_rate, "seed": options.seed}
    parts = {"network": network, "optimizer": optimizer}
    run(options.out, parts, advance, options.steps, seed=options.seed, facts=said)
    weights = {name: x.half() for name, x in network.state_dict().items()}
    write_tensors(options.out / "weights.safetensors", weights)
    known = knowledge(network, held_out)
    write_json(options.out / "held_out.json", {**known, "steps": options.steps, **said})
    return network


def drawn(folder: Path, split: str, seed: int, mirrored: bool = False) -> Shown:
    """Draw pixels of every picture of a split, and of its mirror image after all others.

    Raises:
        ValueError: The figures were rendered without their truth, or are not twice as high as wide.
    """
    figures = Figures(folder, split)
    if not figures.options["truth"]:
        raise ValueError(f"{folder} holds figures without their truth")
    h, w = figures.part.shape[1:]
    if h != 2 * w:
        raise ValueError(f"{folder} has pictures of {h}x{w}; they must be twice as high as wide")
    draws = np.random.default_rng(seed)
    every = [
        shown_by(figures, i, draws) for i in tqdm(range(len(figures.part)), split, disable=None)
    ]
    shown = Shown(*(torch.stack(each) for each in zip(*every, strict=True)))
    return with_mirrored(shown) if mirrored else shown


def with_mirrored(shown: Shown) -> Shown:
    """Append what a mirror shows."""
    mirrored = Shown(
        *in_mirror(shown.points, shown.across),
        shown.down,
        torch.tensor(OTHER_SIDE)[shown.part],
        torch.tensor(FLIP) * shown.place,
    )
    pairs = zip(vars(shown).values(), vars(mirrored).values(), strict=True)
    return Shown(*(torch.cat(pair) for pair in pairs))


def shown_by(figures: Figures, picture: int, draws: np.random.Generator) -> tuple[Tensor, ...]:
    """Draw pixels of one picture, those of the person first."""
    part = figures.part[picture]
    h, w = part.shape
    person = np.flatnonzero(part)
    near = draws.choice(person, NEAR_PERSON) + around(h, draws) + w * around(h, draws)
    pixels = [draws.choice(person, ON_PERSON), near, draws.integers(0, h * w, ANYWHERE)]
    at = np.concatenate(pixels).clip(0, h * w - 1)
    local = np.array(figures.local[picture], np.float32).reshape(-1, 3)[at]
    ray = 0.5 / h - RAY  # figures know the surface 1/4 of a pixel off
    return (
        scaled(torch.from_numpy(np.array(figures.points[picture])), (h, w)),
        torch.from_numpy((2 * (at % w) + 1 - w) / h + ray).float(),
        torch.from_numpy((2 * (at // w) + 1 - h) / h + ray).float(),
        torch.from_numpy(np.array(part).ravel()[at]).long(),
        torch.from_numpy(local) / SPREAD,
    )


def around(rows: int, draws: np.random.Generator) -> Int[np.ndarray, " p"]:
    reach = max(1, round(REACH * rows))
    return draws.integers(-reach, reach + 1, NEAR_PERSON)


def scaled(points: Float[Tensor, "18 3"], size: tuple[int, int]) -> Float[Tensor, "18 3"]:
    """Bring key points from pixels to the lengths of `body.located`."""
    h, w = size
    sides, there = points.new_tensor([w, h]), (points[:, 2:] > 0).float()
    return torch.cat([(2 * points[:, :2] + 1 - sides) / h, torch.ones_like(there)], dim=1) * there


def some_of(theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b 2 3"]:
    """Replace all maps but a few, chosen by chance, by the identity."""
    kept = torch.rand(len(theta), 1, 1) < DISTORTED
    return torch.where(kept, theta, torch.eye(2, 3))


def distorted(shown: Shown, theta: Float[Tensor, "b 2 3"]) -> Shown:
    """Move key points and pixels as `data.warp` moves them; what they show stays."""
    points = torch.cat([moved(shown.points[..., :2], theta), shown.points[..., 2:]], dim=2)
    pixels = moved(torch.stack([shown.across, shown.down], dim=2), theta)
    points = points * shown.points[..., 2:]
    return Shown(points, *pixels.unbind(dim=2), shown.part, shown.place)


def moved(places: Float[Tensor, "b n 2"], theta: Float[Tensor, "b 2 3"]) -> Tensor:
    """Undo the map, whose lengths are halves of the sides: of a picture twice as high as wide."""
    wide = places.new_tensor([2.0, 1.0])
    linear, shift = theta.split([2, 1], dim=2)
    return torch.linalg.solve(linear, (places * wide).mT - shift).mT / wide


def losses(network: Surface, shown: Shown) -> dict[str, Tensor]:
    """Cross-entropy of the parts, and the error of surface points where people are."""
    logits, error = told(network.read, shown)
    parts = F.cross_entropy(logits.flatten(0, 1), shown.part.flatten())
    return {"parts": parts, "points": POINTS * error[shown.part > 0].mean()}


def told(
    network: Callable[..., tuple[Tensor, Tensor]], shown: Shown
) -> tuple[Float[Tensor, "n p k"], Float[Tensor, "n p"]]:
    """Return the logits of the parts, and how far off the points are if the true part is known."""
    logits, points = network(shown.points, shown.across, shown.down)
    of_part = points.gather(2, shown.part[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
    return logits, (of_part - shown.place).norm(dim=2)


@torch.no_grad()
def knowledge(network: Surface, shown: Shown) -> dict[str, float]:
    """Of pixels of people: how many parts are right, and the median error of their points."""
    logits, error = told(network, shown)
    right = (logits.argmax(dim=2) == shown.part)[:, :ON_PERSON].float().mean()
    median = error[:, :ON_PERSON].median() * SPREAD * HEIGHT_PX
    return {"parts": right.item(), "points, median px of 256": median.item()}


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
