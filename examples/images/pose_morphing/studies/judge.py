"""What a trained generator is judged on: people that no run saw, in new poses."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from examples.common import checkpoints
from examples.common.frechet import frechet_distance
from examples.common.stylegan2 import Discriminator
from examples.common.untrusted import read_json
from examples.images.pose_morphing.data import to_tensors
from examples.images.pose_morphing.evaluate import BATCH
from examples.images.pose_morphing.losses import TextureEnergy
from examples.images.pose_morphing.measures.scores import (
    NEAR_PX,
    ROWS,
    key_distances,
    l1,
    psnr,
    ssim,
)
from examples.images.pose_morphing.measures.tasks import (
    Task,
    distortion_task,
    in_unit_range,
    pair_task,
    part_of,
)
from examples.images.pose_morphing.model import Generator, discriminator_of
from examples.images.pose_morphing.trained import load_trained
from examples.people import recogniser
from examples.people.figures.truth import open_truth
from examples.people.keypoints import on_picture
from examples.people.pictures import Pictures
from examples.people.recogniser.train import NEAR
from examples.people.sources import open_pictures

KEYED = 128  # pairs on which keys are compared with the truth
TITLES = {
    "frechet": "Frechet distance",
    "texture": "texture distance",
    "ssim": "SSIM",
    "l1": "L1",
    "psnr": "PSNR of distortions, dB",
    "pose": "key points found",
    "keys": "keys within 3 pixels",
    "right_over_wrong": "D(right pose) > D(wrong)",
}
FORMS = {"psnr": ".1f", "texture": ".4f"}


@dataclass(frozen=True)
class Judge:
    """What runs are judged on."""

    pictures: Pictures
    task: Task
    keyed: Task  # some of it, with the true correspondence
    follow: Task  # distortions: a picture is to follow an affine map of its pose
    network: recogniser.Recogniser
    truths: Float[Tensor, "n 64"]  # features of the true pictures

    @classmethod
    def of(cls, strangers: Path, count: int) -> "Judge":
        pictures = open_pictures(strangers, "train")
        task = pair_task(pictures, count, seed=77)
        truth = open_truth(strangers, "train")
        keyed = pair_task(pictures, min(KEYED, count), seed=77, truth=truth)
        network = recogniser.shipped("judge")
        follow = distortion_task(pictures, min(KEYED, count), seed=77)
        truths = batched(network.gist, task.batch.truth)
        return cls(pictures, task, keyed, follow, network, truths)

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Measure what the run in a folder has learnt."""
        trained = load_trained(folder)
        found = {"steps": trained.step, **self.of_pictures(made(trained.generator, self.task))}
        followed = made(trained.generator, self.follow).clamp(-1, 1)
        both = in_unit_range(followed), in_unit_range(self.follow.batch.truth)
        found["psnr"] = psnr(*both).mean().item()
        if keys := keys_within(trained.generator, self.keyed):
            found["keys"] = next(iter(keys.values()))
        saved = checkpoints.latest(folder)
        assert saved is not None
        if any(name.startswith("discriminator/") for name in saved.tensors):
            discriminator = discriminator_of(trained.generator.config)
            checkpoints.restore({"discriminator": discriminator}, saved.tensors)
            found["right_over_wrong"] = self.right_over_wrong(discriminator)
        return found

    def of_pictures(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Measure made pictures of the task, in -1 to 1."""
        images = images.clamp(-1, 1)
        truth = self.task.batch.truth
        pair = in_unit_range(images), in_unit_range(truth)
        asked = torch.from_numpy(self.task.target_points)
        seen = on_picture(asked, self.pictures.size)
        far = (batched(self.network.points, images) - asked[..., :2]).norm(dim=2)[seen]
        return {
            "frechet": self.frechet(images),
            "texture": TextureEnergy()(images, truth).item(),
            "ssim": ssim(*pair).mean().item(),
            "l1": l1(*pair).mean().item(),
            "pose": (far <= NEAR * self.pictures.size[0]).float().mean().item(),
        }

    def others(self, pictures: Pictures) -> float:
        """Measure the Frechet distance of other people's true pictures, as many."""
        ids = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        images, _ = to_tensors(pictures.at(ids[: len(self.task)].numpy()), torch.device("cpu"))
        return self.frechet(images)

    def frechet(self, images: Float[Tensor, "n 3 h w"]) -> float:
        """Measure the Frechet distance to the true pictures, as a share of their own variance."""
        found = frechet_distance(batched(self.network.gist, images), self.truths)
        return found / self.truths.var(dim=0).sum().item()

    @torch.no_grad()
    def right_over_wrong(self, discriminator: Discriminator) -> float:
        """Measure the share of true pictures that are preferred with their own pose."""
        count = len(self.task)
        ids = torch.arange(count)
        images, maps = to_tensors(self.pictures.at(ids.numpy()), torch.device("cpu"))
        others = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        others = torch.where(others == ids, (others + 1) % count, others)
        batches = [
            discriminator(images[i], maps[i]) > discriminator(images[i], maps[others[i]])
            for i in ids.split(BATCH)
        ]
        return torch.cat(batches).float().mean().item()


@torch.no_grad()
def batched(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images.split(BATCH)])


@torch.no_grad()
def made(generator: Generator, task: Task) -> Float[Tensor, "n 3 h w"]:
    """Make the pictures of a task, in -1 to 1; noise is the same for every generator."""
    torch.manual_seed(0)
    parts = [part_of(task, ids).batch for ids in torch.arange(len(task)).split(BATCH)]
    return torch.cat([generator(x.source, x.source_maps, x.target_maps).image for x in parts])


@torch.no_grad()
def keys_within(generator: Generator, task: Task) -> dict[str, float]:
    """Measure for each level the share of copyable pixels whose strongest key is near the truth.

    Near is within 3 pixels of a picture of 128 rows, which a random key is in 0.3 % of the cases,
    or within three quarters of the side of a coarser level's site.
    """
    near: dict[str, list[torch.Tensor]] = {}
    for ids in torch.arange(len(task)).split(BATCH):
        part = part_of(task, ids)
        batch = part.batch
        morph = generator(batch.source, batch.source_maps, batch.target_maps)
        for level in morph.levels:
            found = [
                key_distances(level, i, part.places[i], part.copyable[i]) for i in range(len(part))
            ]
            name = f"keys/{level.size[0]}x{level.size[1]}"
            least = max(NEAR_PX[0], 0.75 * ROWS / level.size[0])
            near.setdefault(name, []).append(torch.cat(found) <= least)
    return {name: torch.cat(x).float().mean().item() for name, x in near.items()}


def is_complete(folder: Path) -> bool:
    """Tell whether a run has taken all of its steps."""
    if not folder.is_dir():
        return False
    found = checkpoints.records(folder)
    return bool(found) and read_json(found[0])["facts"]["steps"] == checkpoints.step_of(found[0])


def cells(each: list[dict[str, Any]]) -> list[str]:
    return [cell([x[name] for x in each if name in x], FORMS.get(name, ".3f")) for name in TITLES]


def cell(values: list[float], form: str) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"
