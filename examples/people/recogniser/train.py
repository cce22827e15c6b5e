"""Train a recogniser: `python -m examples.people.recogniser.train --data FOLDER --out FOLDER`.

Two pictures of each of some people a step: their key points are to be found, and the two to be
alike and unlike those of the others. A run that was killed goes on with the same bits. At the end
the weights are written to weights.safetensors in 16 bits, and what they know of held-out people to
held_out.json.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from examples.common.commands import check_count, check_seed, command, set_threads
from examples.common.files import write_json, write_tensors
from examples.common.loop import descend, run
from examples.common.schedule import warm_up_cosine
from examples.people.keypoints import on_picture
from examples.people.pictures import People, Pictures
from examples.people.recogniser.network import Recogniser, load
from examples.people.sources import open_pictures

SHARPNESS = 10.0  # of the comparison of people: the cosine counts that many times
NEAR = 0.05  # share of the height within which a key point counts as found


@dataclass(frozen=True)
class Options:
    """Train a recogniser."""

    data: Path  # pictures with pairs, such as figures
    out: Path
    steps: int = 3000
    batch: int = 24  # pairs
    learning_rate: float = 1e-3
    seed: int = 0
    threads: int = 1


def main(options: Options) -> Recogniser:
    """Train, write the weights and what they know of held-out people."""
    check_count("--steps", options.steps)
    check_count("--batch", options.batch, least=2)
    check_seed(options.seed)
    set_threads(options.threads)
    torch.set_flush_denormal(True)
    pictures = open_pictures(options.data, "train")
    torch.manual_seed(options.seed)
    network = Recogniser()
    optimizer = torch.optim.Adam(network.parameters())

    def advance(step: int) -> dict[str, float]:
        rate = options.learning_rate * warm_up_cosine(step, options.steps, 50, hold=0.5)
        rows = torch.randint(len(pictures.pairs), (options.batch,)).numpy()
        pair = pictures.pairs_at(rows)
        terms = losses(network, pair)
        return descend(optimizer, terms, rate)

    said = {"batch": options.batch, "learning_rate": options.learning_rate, "seed": options.seed}
    parts = {"network": network, "optimizer": optimizer}
    run(options.out, parts, advance, options.steps, seed=options.seed, facts=said)
    path = options.out / "weights.safetensors"
    write_tensors(path, {name: x.half() for name, x in network.state_dict().items()})
    known = knowledge(load(path), open_pictures(options.data, "test"))
    write_json(options.out / "held_out.json", {**known, "steps": options.steps, **said})
    return network


def losses(network: Recogniser, pair: tuple[People, People]) -> dict[str, Tensor]:
    """Cross-entropy of the key points that are seen, and of who belongs to whom."""
    features = [network(to_images(people)) for people in pair]
    points = [point_loss(network.maps(x), p.points) for x, p in zip(features, pair, strict=True)]
    first, second = (network.person(x) for x in features)
    alike = SHARPNESS * first @ second.T
    own = torch.arange(len(alike))
    people = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
    return {"points": torch.stack(points).mean(), "people": people}


def to_images(people: People) -> Float[Tensor, "b 3 h w"]:
    return rearrange(torch.from_numpy(people.images), "b h w c -> b c h w").float() / 127.5 - 1


def point_loss(maps: Float[Tensor, "b 18 h w"], points: object) -> Float[Tensor, ""]:
    """Cross-entropy with the nearest pixel, of the points that are on the picture."""
    where = torch.as_tensor(points)
    height, width = maps.shape[2:]
    seen = on_picture(where, (height, width))
    x, y = where[..., :2].round().long().unbind(dim=2)
    pixel = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1))[seen]
    return F.cross_entropy(maps.flatten(2)[seen], pixel)


@torch.no_grad()
def knowledge(network: Recogniser, pictures: Pictures) -> dict[str, float]:
    """Measure the share of seen key points that are found, and of people who are told apart."""
    people = pictures.at(torch.arange(len(pictures)).numpy())
    points = torch.from_numpy(people.points)
    images = to_images(people)
    seen = on_picture(points, pictures.size)
    far = (network.points(images) - points[..., :2]).norm(dim=2)[seen]
    rows = torch.randperm(len(pictures.pairs), generator=torch.Generator().manual_seed(0))[:100]
    pair = pictures.pairs_at(rows.numpy())
    first, second = (network.person(network(to_images(people))) for people in pair)
    own = torch.from_numpy(pictures.pairs[rows.numpy()])
    itself = own[:, :1] == own[:, 1]  # a picture of one pair can be in another
    others = (first @ second.T).masked_fill(itself, -1)
    alike = (first * second).sum(dim=1, keepdim=True)
    return {
        "points_found": (far <= NEAR * pictures.size[0]).float().mean().item(),
        "point_px": far.median().item(),
        "nearer_than_others": (alike > others).float().mean().item(),
    }


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
