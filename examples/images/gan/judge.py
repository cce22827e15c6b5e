"""Features that tell whether a picture is a head, and which way it looks, whatever its colours.

A small network finds the key points of drawn heads and says which of them are seen, in pictures
whose colours were mixed anew each time, so that nothing but form can tell. Networks that know
colours look at them first: they take stains of the right colours for heads.

    python -m examples.people.figures --folder runs/others --size 256 128 --seed 1 \\
        --identities 600 --poses 4 --no-truth
    python -m examples.images.gan.judge --data runs/others --out runs/judge

Trains it (the one that comes with the example took four minutes of one core) on people who are not
those that generators imitate. The weights are written to weights.safetensors in 16 bits, and what
they know of held-out heads to held_out.json. A run that was killed goes on with the same bits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float
from torch import Tensor, nn

from examples.common.commands import check_count, check_seed, command, set_threads
from examples.common.files import write_json, write_tensors
from examples.common.loop import descend, run
from examples.common.schedule import warm_up_cosine
from examples.images.gan.data import cut_out, squares_of_heads
from examples.people.keypoints import NAMES, flip, on_picture
from examples.people.pictures import Pictures
from examples.people.recogniser import Recogniser, load
from examples.people.recogniser.network import WIDTHS
from examples.people.recogniser.train import point_loss
from examples.people.sources import open_pictures

SIZE = 32  # of the pictures that it knows
SHIPPED = Path(__file__).parent / "weights" / "judge.safetensors"
FARTHEST = 6  # that a picture is shifted, in pixels
NOISE = 0.1  # largest standard deviation of the noise that is added
SEEN = 3.0  # weight of the loss that says which key points are seen
NEAR = 1.5  # within which a key point counts as found, in pixels


class Heads(NamedTuple):
    """Heads in -1 to 1, and the key points of each in its pixels."""

    images: Float[Tensor, "n 3 32 32"]
    points: Float[Tensor, "n 18 3"]


@dataclass(frozen=True)
class Options:
    """Train the network whose features judge heads."""

    data: Path  # drawn figures
    out: Path
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int = 1


def main(options: Options) -> Recogniser:
    """Train, write the weights and what they know of held-out heads."""
    check_count("--steps", options.steps)
    check_count("--batch", options.batch)
    check_seed(options.seed)
    set_threads(options.threads)
    torch.set_flush_denormal(True)
    known, held_out = (heads_of(open_pictures(options.data, part)) for part in ("train", "test"))
    torch.manual_seed(options.seed)
    network, to_seen = Recogniser(), nn.Linear(WIDTHS[-1], len(NAMES))
    optimizer = torch.optim.Adam([*network.parameters(), *to_seen.parameters()])

    def advance(step: int) -> dict[str, float]:
        rate = options.learning_rate * warm_up_cosine(step, options.steps, 50)
        chosen = torch.randint(len(known.images), (options.batch,))
        terms = losses(network, to_seen, varied(Heads(*(x[chosen] for x in known))))
        return descend(optimizer, terms, rate)

    said = {"batch": options.batch, "learning_rate": options.learning_rate, "seed": options.seed}
    parts = {"network": network, "to_seen": to_seen, "optimizer": optimizer}
    run(options.out, parts, advance, options.steps, seed=options.seed, facts=said)
    path = options.out / "weights.safetensors"
    write_tensors(path, {name: x.half() for name, x in network.state_dict().items()})
    found = knowledge(load(path), held_out)
    write_json(options.out / "held_out.json", {**found, "steps": options.steps, **said})
    return network


def heads_of(people: Pictures) -> Heads:
    """Cut out the heads, and bring the key points into them.

    Raises:
        BadInput: There is none that is large enough.
    """
    squares = squares_of_heads(people, SIZE)
    images, points = cut_out(people, squares, SIZE), []
    for i, left, top, side in squares:
        x, y, there = torch.tensor(people.points[i]).float().unbind(dim=1)
        scale = SIZE / side
        x, y = ((a + 0.5 - start) * scale - 0.5 for a, start in ((x, left), (y, top)))
        points.append(torch.stack([x, y, there], dim=1))
    return Heads(images.float() / 127.5 - 1, torch.stack(points))


def varied(some: Heads) -> Heads:
    """Mirror half of them, shift all alike, mix the colours of each, and add a little noise."""
    images, points = some
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    points = torch.where(mirrored[:, None, None], flip(points, SIZE), points)
    right, down = torch.randint(-FARTHEST, FARTHEST + 1, (2,)).tolist()
    wider = F.pad(images, (FARTHEST,) * 4, mode="reflect")
    top, left = FARTHEST - down, FARTHEST - right
    images = wider[:, :, top : top + SIZE, left : left + SIZE]
    noise = NOISE * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)
    return Heads(in_other_colours(images) + noise, points + torch.tensor([right, down, 0]))


def in_other_colours(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Take some colour out of each picture, then mix its channels and shift them."""
    count = len(images)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + torch.rand(count, 1, 1, 1) * (images - grey)
    mix = torch.eye(3) + 0.4 * torch.randn(count, 3, 3)
    return torch.einsum("bij,bjhw->bihw", mix, images) + 0.3 * torch.randn(count, 3, 1, 1)


def losses(network: Recogniser, to_seen: nn.Linear, some: Heads) -> dict[str, Tensor]:
    """Cross-entropy of where each key point is, and of whether it is seen."""
    features = network(some.images)
    logits = to_seen(features[-1].mean(dim=(2, 3)))
    return {
        "points": point_loss(network.maps(features), some.points),
        "seen": SEEN * F.binary_cross_entropy_with_logits(logits, seen(some).float()),
    }


def seen(some: Heads) -> Bool[Tensor, "b 18"]:
    return on_picture(some.points, (SIZE, SIZE))


@torch.no_grad()
def knowledge(network: Recogniser, some: Heads) -> dict[str, float]:
    """Measure how far from its true place a key point that is seen is found, in other colours."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = in_other_colours(some.images)
    far = (network.points(images) - some.points[..., :2]).norm(dim=2)[seen(some)]
    return {"points_found": (far <= NEAR).float().mean().item(), "point_px": far.median().item()}


def shipped() -> Recogniser:
    """Load the one that comes with the example, frozen."""
    return load(SHIPPED)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
