"""One generator on one task: its pictures, and every measure of each of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from examples.images.pose_morphing.losses.perceptual import Perceptual
from examples.images.pose_morphing.losses.texture import TextureEnergy
from examples.images.pose_morphing.measures.copy_accuracy import copy_accuracy, key_distances
from examples.images.pose_morphing.measures.pixels import l1, psnr
from examples.images.pose_morphing.measures.ssim import ssim
from examples.images.pose_morphing.measures.table import Scores
from examples.images.pose_morphing.measures.tasks import Task, in_unit_range, part_of
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.model.generator import Morph
from examples.images.pose_morphing.studies.memory import attention_bytes

BATCH = 8


@dataclass(frozen=True)
class Rendered:
    """What a generator made of a task."""

    images: Float[Tensor, "n 3 h w"]  # in -1 to 1
    keys: Scores  # of the finest attention; empty without attention


@torch.no_grad()
def render(generator: Generator, task: Task, device: torch.device) -> Rendered:
    """Pictures, and how exactly the finest attention finds what is to be copied."""
    images, keys = [], []
    for ids in torch.arange(len(task)).split(BATCH):
        part = part_of(task, ids)
        morph = morph_of(generator, part, device)
        images.append(morph.image.float().cpu())
        if morph.levels:
            keys += [key_scores(morph, part, i) for i in range(len(part))]
    names = keys[0] if keys else {}
    found = {name: torch.tensor([each[name] for each in keys]) for name in names}
    return Rendered(torch.cat(images), found)


def morph_of(generator: Generator, task: Task, device: torch.device) -> Morph:
    batch = task.batch
    inputs = (batch.source, batch.source_maps, batch.target_maps)
    return generator(*(x.to(device) for x in inputs))


def key_scores(morph: Morph, task: Task, picture: int) -> dict[str, float]:
    where = task.places[picture], task.copyable[picture]
    return copy_accuracy(key_distances(morph.levels[0], picture, *where))


def scores(rendered: Rendered, task: Task, perceptual: Perceptual | None = None) -> Scores:
    """Every measure of every picture; texture and perceptual distance as in training."""
    images, truths = in_unit_range(rendered.images), in_unit_range(task.batch.truth)
    found = {
        "psnr": psnr(images, truths),
        "ssim": ssim(images, truths),
        "ssim_patn": ssim(images, truths, "patn"),
        "l1": l1(images, truths),
        "texture": TextureEnergy().each(2 * images - 1, 2 * truths - 1),
    }
    if task.copyable.any():
        found["copyable_psnr"] = psnr(images, truths, task.copyable)
        found["copyable_ssim"] = ssim(images, truths, where=task.copyable)
    if perceptual is not None:
        pairs = zip((2 * images - 1).split(BATCH), (2 * truths - 1).split(BATCH))
        with torch.no_grad():
            found["perceptual"] = torch.cat([perceptual.each(*pair) for pair in pairs])
    return found | rendered.keys


@torch.no_grad()
def level_bytes(generator: Generator, task: Task, device: torch.device) -> dict[str, int]:
    """Memory of each level's attention by its size, the finest first."""
    config = generator.config
    widths = dict(zip(config.sizes, config.channels))
    levels = morph_of(generator, part_of(task, torch.arange(1)), device).levels
    values = {level.size: widths[level.size] + 3 * config.copy_rgb for level in levels}
    with torch.enable_grad():
        return {
            f"{level.size[0]}x{level.size[1]}": attention_bytes(level, values[level.size])
            for level in levels
        }
