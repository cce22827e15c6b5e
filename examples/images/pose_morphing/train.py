"""Train pose morphing: `python -m examples.images.pose_morphing.train --data FOLDER --out FOLDER`.

A run that was killed goes on where it stopped; on a CPU with the same bits. Several GPUs:
`torchrun --nproc-per-node N -m examples.images.pose_morphing.train ...`.
"""

import copy
import os
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor, nn

from examples.common.commands import (
    command,
    set_threads,
)
from examples.common.loop import run
from examples.common.schedule import warm_up_cosine
from examples.images.pose_morphing.data import (
    Batch,
    draw_distorted,
    draw_pairs,
    draw_poses,
    join,
)
from examples.images.pose_morphing.losses import (
    R1_EVERY,
    Perceptual,
    TextureEnergy,
    copy_loss,
    correspondence_loss,
    discriminator_loss,
    edge_l1,
    generator_loss,
    gradient_penalty,
    multi_scale_l1,
)
from examples.images.pose_morphing.model import Discriminator, Generator, Morph
from examples.images.pose_morphing.train_options import (
    TrainConfig,
    check_options,
    facts,
)
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures


@dataclass(frozen=True)
class Made:
    """What the discriminator compares: true pictures and made ones, with their heat maps."""

    source: Tensor
    source_maps: Tensor
    image: Tensor
    maps: Tensor


class Trainer:
    """Networks, optimisers and one step of training.

    Args:
        config: The options.
        pictures: The training split.
    """

    def __init__(self, config: TrainConfig, pictures: Pictures) -> None:
        self.config, self.pictures = config, pictures
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.generator = Generator(config.model).to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizer = torch.optim.Adam(groups(self.generator), betas=config.betas)
        self.parts = {
            "generator": self.generator,
            "average": self.average,
            "optimizer": self.optimizer,
        }
        self.texture = TextureEnergy().to(self.device)
        self.perceptual = Perceptual(config.vgg).to(self.device) if self.uses_perceptual else None
        self.discriminator: Discriminator | None = None
        if config.weights.gan:
            self.discriminator = Discriminator(config.model).to(self.device)
            kept = R1_EVERY / (R1_EVERY + 1)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=kept * 2e-3, betas=(0.0, 0.99**kept)
            )
            self.parts |= {
                "discriminator": self.discriminator,
                "discriminator_optimizer": self.discriminator_optimizer,
            }

    @property
    def uses_perceptual(self) -> bool:
        return self.config.weights.perceptual > 0

    def advance(self, step: int) -> dict[str, float]:
        """Take one step: batches, losses, gradients, new weights, their average."""
        done = step / self.config.steps
        set_rate(self.optimizer, self.rate(step))
        self.optimizer.zero_grad()
        figures: dict[str, float] = {}
        made: list[Made] = []
        for _ in range(self.config.accumulate):
            batch = self.draw(done)
            with self.autocast():
                morph = self.render(batch, done)
                terms = self.losses(morph, batch)
                if self.uses_discriminator(done):
                    image, maps = self.made_for_discriminator(batch, morph, done)
                    terms["gan"] = self.config.weights.gan * self.adversarial_loss(image, maps)
                    made.append(Made(batch.source, batch.source_maps, image.detach(), maps))
            loss = torch.stack(list(terms.values())).sum() / self.config.accumulate
            loss.backward()
            for name, x in {**terms, "loss": loss.detach() * self.config.accumulate}.items():
                figures[name] = figures.get(name, 0.0) + x.item() / self.config.accumulate
        average_gradients(self.generator)
        figures["gradient"] = clipped(self.generator, self.config.clip)
        self.optimizer.step()
        self.update_ema()
        if made:
            figures |= self.advance_discriminator(made, step)
        return figures

    def draw(self, done: float) -> Batch:
        """Draw a part of a batch; in the mixed setting half of it are pairs."""
        config, size = self.config, self.config.batch // self.config.accumulate
        if config.setting == "paired":
            return draw_pairs(self.pictures, size, self.device)
        if config.setting == "mixed" and done >= config.distortion_first:
            pairs = draw_pairs(self.pictures, size // 2, self.device)
            return join([draw_distorted(self.pictures, size - size // 2, self.device), pairs])
        return draw_distorted(self.pictures, size, self.device)

    def render(self, batch: Batch, done: float) -> Morph:
        coarse_only = done < self.config.coarse_first
        return self.generator(batch.source, batch.source_maps, batch.target_maps, coarse_only)

    def losses(self, morph: Morph, batch: Batch) -> dict[str, Tensor]:
        """Compute the weighted terms of the generator's loss, without the adversarial one."""
        weights, image = self.config.weights, morph.image.float()
        terms = {
            "pixels": weights.pixels * multi_scale_l1(image, batch.truth),
            "edges": weights.edges * edge_l1(image, batch.truth),
        }
        if self.config.model.copy_rgb:
            terms["copying"] = weights.copying * copy_loss(morph.levels, batch.truth)
        terms["texture"] = weights.texture * self.texture(image, batch.truth)
        if weights.correspondence:
            loss = correspondence_loss(morph.levels, batch.origin, batch.known)
            terms["correspondence"] = weights.correspondence * loss
        if self.perceptual is not None:
            terms["perceptual"] = weights.perceptual * self.perceptual(image, batch.truth)
        return terms

    def made_for_discriminator(
        self, batch: Batch, morph: Morph, done: float
    ) -> tuple[Tensor, Tensor]:
        """Return made pictures and their heat maps; unpaired, the people take random poses."""
        if self.config.setting != "unpaired":
            return morph.image.float(), batch.target_maps
        maps = draw_poses(self.pictures, len(batch), self.device)
        coarse_only = done < self.config.coarse_first
        morph = self.generator(batch.source, batch.source_maps, maps, coarse_only)
        return morph.image.float(), maps

    def adversarial_loss(self, image: Tensor, maps: Tensor) -> Tensor:
        """Ask the discriminator about made pictures."""
        assert self.discriminator is not None
        return generator_loss(self.discriminator(image, maps))

    def uses_discriminator(self, done: float) -> bool:
        return self.discriminator is not None and done >= self.config.gan_from

    def advance_discriminator(self, made: list["Made"], step: int) -> dict[str, float]:
        """Take one step of the discriminator on the sources and what the generator made of them."""
        assert self.discriminator is not None
        self.discriminator_optimizer.zero_grad()
        figures = {"discriminator": 0.0}
        for part in made:
            real = self.discriminator(part.source, part.source_maps)
            fake = self.discriminator(part.image, part.maps)
            loss = discriminator_loss(real, fake) / len(made)
            figures["discriminator"] += loss.item()
            if step % R1_EVERY == 0:
                penalty = gradient_penalty(self.discriminator, part.source, part.source_maps) / len(
                    made
                )
                loss = loss + R1_EVERY * penalty
                figures["penalty"] = figures.get("penalty", 0.0) + penalty.item()
            loss.backward()
        average_gradients(self.discriminator)
        self.discriminator_optimizer.step()
        return figures

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the averaged weights towards the new ones."""
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - self.config.ema)

    def rate(self, step: int) -> float:
        """Warm-up, then constant for half of the steps, then a cosine down to a twentieth."""
        config = self.config
        factor = warm_up_cosine(step, config.steps, config.warm_up_steps, hold=0.5, least=0.05)
        return config.learning_rate * factor

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.in_bfloat16)

    @torch.no_grad()
    def pictures_of(self, step: int) -> dict[str, Tensor]:
        """Source, truth and result of a few, side by side."""
        batch = self.draw(step / self.config.steps)
        with self.autocast():
            image = self.average(batch.source, batch.source_maps, batch.target_maps).image.float()
        rows = torch.cat([batch.source, batch.truth, image], dim=3)[:4]
        return {"source, truth, result": (torch.cat(list(rows), dim=1) + 1) / 2}


def groups(generator: Generator) -> list[dict[str, object]]:
    """Group parameters: temperatures learn five times as fast as the rest."""
    hot = [p for name, p in generator.named_parameters() if name.endswith("log_temperature")]
    rest = [p for name, p in generator.named_parameters() if not name.endswith("log_temperature")]
    return [{"params": rest, "factor": 1.0}, {"params": hot, "factor": 5.0}]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def clipped(module: nn.Module, largest: float) -> float:
    """Clip the gradient and return the norm that it had."""
    return torch.nn.utils.clip_grad_norm_(module.parameters(), largest).item()


def average_gradients(module: nn.Module) -> None:
    """Average over all processes, where there are several."""
    if not torch.distributed.is_initialized():
        return
    count = torch.distributed.get_world_size()
    for p in module.parameters():
        if p.grad is not None:
            torch.distributed.all_reduce(p.grad)
            p.grad /= count


def train(config: TrainConfig, pictures: Pictures | None = None) -> Trainer:
    """Train, or go on training, and return the networks.

    Args:
        config: The options.
        pictures: Instead of the training split of `config.data`.
    """
    check_options(config)
    rank, count = start_processes(config.device)
    set_threads(config.threads)
    torch.set_flush_denormal(True)
    if pictures is None:
        pictures = open_pictures(config.data, "train", config.model.size)
    check_fit(config, pictures)
    device = f"cuda:{os.environ['LOCAL_RANK']}" if count > 1 and "cuda" in config.device else None
    trainer = Trainer(replace(config, device=device or config.device), pictures)
    if trainer.uses_perceptual and config.vgg is None:
        print("no --vgg given: the perceptual loss has random weights, seeded")
    run(
        config.out,
        trainer.parts,
        trainer.advance,
        config.steps,
        seed=config.seed * count + rank,
        facts=facts(config, count),
        save_every_s=config.save_every_s,
        pictures=trainer.pictures_of,
        writes=rank == 0,
    )
    if count > 1:
        torch.distributed.destroy_process_group()
    return trainer


def start_processes(device: str) -> tuple[int, int]:
    """Return the rank of this process and how many there are, as `torchrun` says."""
    if "RANK" not in os.environ:
        return 0, 1
    backend = "nccl" if "cuda" in device else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def check_fit(config: TrainConfig, pictures: Pictures) -> None:
    if pictures.size != config.model.size:
        raise ValueError(f"pictures have {pictures.size} pixels, the model {config.model.size}")
    if config.setting in ("paired", "mixed") and not len(pictures.pairs):
        raise ValueError(f"setting {config.setting!r} needs pairs, and {config.data} has none")
    if config.setting == "unpaired" and not config.weights.gan:
        raise ValueError("setting 'unpaired' needs a discriminator: give --weights.gan 1")
    least = config.accumulate * (2 if config.setting == "mixed" else 1)
    if config.batch % config.accumulate or config.batch < least:
        raise ValueError(
            f"a batch of {config.batch} in {config.accumulate} parts: expected a multiple, and at "
            f"least {least} samples in the setting {config.setting!r}"
        )


if __name__ == "__main__":
    command(lambda: train(tyro.cli(TrainConfig)))
