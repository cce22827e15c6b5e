"""The two tasks that generators are judged on, drawn once with a seed from held-out pictures."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.images.pose_morphing.data import (
    STRENGTH,
    Batch,
    distorted,
    paired,
    random_affine,
    to_tensors,
    warp_points,
)
from examples.people.figures.truth import Truth
from examples.people.pictures import Pictures


@dataclass(frozen=True)
class Task:
    """Questions with their answers."""

    batch: Batch
    target_points: Float[np.ndarray, "b 18 3"]
    places: Float[Tensor, "b h w 2"]  # row and column in the source of each pixel of the target
    copyable: Bool[Tensor, "b h w"]  # where the source shows it; False where that is not known

    def __len__(self) -> int:
        return len(self.batch)


def pair_task(pictures: Pictures, count: int, seed: int, truth: Truth | None = None) -> Task:
    """Draw pictures of people, to be brought into the pose of another of the same person."""
    rows = np.random.default_rng(seed).permutation(len(pictures.pairs))[:count]
    sources, targets = pictures.pairs_at(rows)
    batch = paired(sources, targets, torch.device("cpu"))
    b, h, w = batch.known.shape
    places, copyable = torch.zeros(b, h, w, 2), torch.zeros(b, h, w, dtype=torch.bool)
    if truth is not None:
        for i, (source, target) in enumerate(pictures.pairs[rows].tolist()):
            found = truth.correspond(source, target)
            places[i], copyable[i] = (torch.from_numpy(np.asarray(x)) for x in found)
    return Task(batch, targets.points, places, copyable)


def distortion_task(
    pictures: Pictures,
    count: int,
    seed: int,
    truth: Truth | None = None,
    strength: float = STRENGTH,
) -> Task:
    """A picture and a random affine map of its pose: the picture is to follow.

    Copyable is what comes from inside the source, and from the person where that is known: one
    place of a background is as good as another.
    """
    ids = np.random.default_rng(seed).permutation(len(pictures))[:count]
    people = pictures.at(ids)
    image, maps = to_tensors(people, torch.device("cpu"))
    theta = random_affine(len(ids), strength, torch.Generator().manual_seed(seed))
    batch = distorted(image, maps, theta)
    places = places_of_origin(batch.origin)
    copyable = batch.known
    if truth is not None:
        person = torch.from_numpy(np.stack([truth.on_person(int(i)) for i in ids])).float()[:, None]
        inside = F.grid_sample(person, batch.origin, mode="nearest", align_corners=False)
        copyable = copyable & (inside[:, 0] > 0.5)
    points = warp_points(torch.from_numpy(people.points), theta, pictures.size)
    return Task(batch, points.numpy(), places, copyable)


def places_of_origin(origin: Float[Tensor, "b h w 2"]) -> Float[Tensor, "b h w 2"]:
    """Turn x and y in -1 to 1 into rows and columns in pixels."""
    _, h, w, _ = origin.shape
    return ((origin.flip(-1) + 1) * origin.new_tensor([h, w]) - 1) / 2


def part_of(task: Task, ids: Int[Tensor, " k"]) -> Task:
    """Some of the questions."""
    points = task.target_points[ids.numpy()]
    return Task(task.batch.part(ids), points, task.places[ids], task.copyable[ids])


def in_unit_range(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Map -1 to 1 onto 0 to 1, and cut off there."""
    return ((images.float() + 1) / 2).clamp(0, 1)
