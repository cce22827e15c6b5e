"""Train pose morphing: `python -m examples.images.pose_morphing.train --data FOLDER --out FOLDER`.

With `paper` before the options, their defaults are those of the paper. A run that was killed goes
on where it stopped; on a CPU with the same bits. Several GPUs:
`torchrun --nproc-per-node N -m -- examples.images.pose_morphing.train ...`.
"""

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import tyro
from torch import Tensor, nn

from examples.common.adversarial import lazy_adam, non_saturating, non_saturating_generator, r1
from examples.common.checkpoints import Part
from examples.common.commands import command, set_threads
from examples.common.loop import run
from examples.common.processes import average_gradients, start_processes
from examples.common.schedule import warm_up_cosine
from examples.common.stylegan2 import Discriminator
from examples.images.pose_morphing import data
from examples.images.pose_morphing.data import (
    Batch,
    distorted,
    draw_posed,
    join,
    random_affine,
)
from examples.images.pose_morphing.growth import before_growth, begin_with, carry_over
from examples.images.pose_morphing.losses import (
    R1_EVERY,
    TextureEnergy,
    copy_loss,
    correspondence_loss,
    edge_l1,
    multi_scale_l1,
    structural_loss,
)
from examples.images.pose_morphing.model import Generator, Morph, discriminator_of
from examples.images.pose_morphing.perceptual import perceptual_of
from examples.images.pose_morphing.surface import use_surface
from examples.images.pose_morphing.train_options import TrainConfig, check_options, facts, paper
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures.truth import open_truth
from examples.people.pictures import Pictures
from examples.people.sources import open_pictures
from ndgpa import GPA


@dataclass(frozen=True)
class Task:
    """A batch, and what is asked of the pictures that are made of it."""

    batch: Batch
    compared: bool = True  # with the truth
    judged: bool = True  # by the discriminator, where it is used


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
        self.truth = open_truth(config.data, "train") if config.true_pairs else None
        torch.manual_seed(config.seed)
        self.parts: dict[str, Part] = {}
        self.doublings = len(config.grow_at)  # that are still to come
        self.use(self.network())
        trained = [load_trained(each).generator for each in config.start]
        if trained:
            begin_with(trained, self.generator)
        if config.model.body and not config.surface and not any(x.config.body for x in trained):
            raise ValueError(
                f"{config.preset} needs --surface, weights of train_surface.py, or a --start that "
                "was trained with them"
            )
        self.average.load_state_dict(self.told(self.generator).state_dict())
        self.texture = TextureEnergy().to(self.device)
        self.perceptual = None
        if config.weights.perceptual:
            self.perceptual = perceptual_of(config.vgg, config.lpips).to(self.device)
        self.discriminator: Discriminator | None = None
        if config.weights.gan:
            self.discriminator = discriminator_of(config.model).to(self.device)
            self.discriminator_optimizer = lazy_adam(
                self.discriminator.parameters(), 2e-3, R1_EVERY
            )
            self.parts |= {
                "discriminator": self.discriminator,
                "discriminator_optimizer": self.discriminator_optimizer,
            }

    def network(self) -> Generator:
        """Build the generator of the present size."""
        config = before_growth(self.config.model, self.doublings)
        return self.told(Generator(config)).to(self.device, memory_format=torch.channels_last)

    def told(self, generator: Generator) -> Generator:
        """Load the weights of the surface, if they are given."""
        if self.config.surface is not None:
            use_surface(generator, self.config.surface)
        return generator

    def use(self, generator: Generator) -> None:
        """Train this generator from now on, with a new optimizer."""
        self.generator = generator
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.optimizer = torch.optim.Adam(groups(generator), betas=self.config.betas)
        self.parts |= {
            "generator": self.generator,
            "average": self.average,
            "optimizer": self.optimizer,
        }

    def grow(self, step: int) -> None:
        """Bring the networks to the size that this step is taken at."""
        while self.doublings > sum(step < growth for growth in self.config.grow_at):
            self.doublings -= 1
            generator, average = self.generator, self.average
            self.use(self.network())
            carry_over(generator, self.generator)
            carry_over(average, self.average)

    def prepare(self, steps: int) -> None:
        """Bring the networks to the size that they had after so many steps."""
        self.grow(steps - 1)

    def advance(self, step: int) -> dict[str, float]:
        """Take one step: batches, losses, gradients, new weights, their average."""
        self.grow(step)
        done = step / self.config.steps
        set_rate(self.optimizer, self.rate(step))
        self.optimizer.zero_grad()
        figures: dict[str, float] = {}
        made: list[Made] = []
        for _ in range(self.config.accumulate):
            tasks = self.draw(done)
            with self.autocast():
                terms = self.terms(tasks, done, made)
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

    def draw(self, done: float) -> list[Task]:
        """Draw a part of a batch, at the present size."""
        tasks = self.draw_large(done)
        return [replace(task, batch=task.batch.reduced(self.doublings)) for task in tasks]

    def draw_large(self, done: float) -> list[Task]:
        """Draw a part of a batch; in the mixed setting half of it are pairs."""
        config, size = self.config, self.config.batch // self.config.accumulate
        setting, pictures, device = config.setting, self.pictures, self.device
        draw_pairs = partial(data.draw_pairs, truth=self.truth, variety=config.variety)
        draw_distorted = partial(data.draw_distorted, variety=config.variety)
        if setting == "paired":
            return [Task(draw_pairs(pictures, size, device))]
        if setting == "equation2":
            pairs = draw_pairs(pictures, size, device)
            same = distorted(pairs.source, pairs.source_maps, random_affine(size))
            return [Task(pairs), Task(same, judged=False)]
        if setting == "mixed" and done >= config.distortion_first:
            pairs = draw_pairs(pictures, size // 2, device)
            return [Task(join([draw_distorted(pictures, size - size // 2, device), pairs]))]
        distortions = draw_distorted(pictures, size, device)
        if setting == "unpaired" and self.uses_discriminator(done):
            posed = draw_posed(pictures, distortions, device)
            return [Task(distortions, judged=False), Task(posed, compared=False)]
        return [Task(distortions)]

    def terms(self, tasks: list[Task], done: float, made: list[Made]) -> dict[str, Tensor]:
        """Compute the weighted losses; add to `made` what the discriminator is to see.

        The generator runs once, for all tasks together.
        """
        morph = self.render(join([task.batch for task in tasks]), done)
        terms: dict[str, Tensor] = {}
        for task, part in zip(tasks, morph.split([len(task.batch) for task in tasks]), strict=True):
            batch, image = task.batch, part.image.float()
            found = self.losses(part, batch) if task.compared else {}
            if task.judged and self.uses_discriminator(done):
                gan = self.adversarial_loss(image, batch.target_maps)
                found["gan"] = self.config.weights.gan * gan
                sources = batch.source, batch.source_maps
                made.append(Made(*sources, image.detach(), batch.target_maps))
            terms |= {name: terms.get(name, 0.0) + x for name, x in found.items()}
        return terms

    def render(self, batch: Batch, done: float) -> Morph:
        coarse_only = done < self.config.coarse_first
        return self.generator(batch.source, batch.source_maps, batch.target_maps, coarse_only)

    def losses(self, morph: Morph, batch: Batch) -> dict[str, Tensor]:
        """Compute the weighted terms of the generator's loss, without the adversarial one."""
        weights, image, truth = self.config.weights, morph.image.float(), batch.truth
        losses: dict[str, Callable[[], Tensor]] = {
            "pixels": lambda: multi_scale_l1(image, truth),
            "edges": lambda: edge_l1(image, truth),
            "texture": lambda: self.texture(image, truth),
            "structure": lambda: structural_loss(image, truth),
            "correspondence": lambda: correspondence_loss(morph.levels, batch.origin, batch.known),
            "selected": lambda: correspondence_loss(
                morph.levels, batch.origin, batch.known, GPA, self.sharper(batch)
            ),
        }
        if self.config.model.copy_rgb:
            losses["copying"] = lambda: copy_loss(morph.copied, truth)
        if self.perceptual is not None:
            perceptual = self.perceptual
            losses["perceptual"] = lambda: perceptual(image, truth)
        counted = {name: getattr(weights, name) for name in losses}
        return {name: w * losses[name]() for name, w in counted.items() if w}

    def sharper(self, batch: Batch) -> Tensor:
        """Return how much sharper each sample is copied than the loss of correspondence asks.

        Not at all if it is distorted: then the loss asks for the very shares of an interpolation.
        """
        return torch.where(batch.moved, 1.0, self.config.sharper)

    def adversarial_loss(self, image: Tensor, maps: Tensor) -> Tensor:
        """Ask the discriminator about made pictures."""
        assert self.discriminator is not None
        return non_saturating_generator(self.discriminator(image, maps))

    def uses_discriminator(self, done: float) -> bool:
        return self.discriminator is not None and done >= self.config.gan_from

    def advance_discriminator(self, made: list["Made"], step: int) -> dict[str, float]:
        """Take one step of the discriminator on the sources and what the generator made of them."""
        assert self.discriminator is not None
        self.discriminator_optimizer.zero_grad()
        figures = {"discriminator": 0.0}
        for part in made:
            real = self.discriminator(part.source, part.source_maps)
            loss = non_saturating(real, self.scores_of_fakes(part)) / len(made)
            figures["discriminator"] += loss.item()
            if step % R1_EVERY == 0:
                penalty = self.gradient_penalty(part) / len(made)
                loss = loss + R1_EVERY * penalty
                figures["penalty"] = figures.get("penalty", 0.0) + penalty.item()
            loss.backward()
        average_gradients(self.discriminator)
        self.discriminator_optimizer.step()
        return figures

    def scores_of_fakes(self, part: Made) -> Tensor:
        """Judge made pictures and, if asked for, as many true ones in each other's poses.

        Nothing else says that the pose is to be looked at: made pictures keep to theirs.
        Source: Reed et al. 2016, section 4.1.
        """
        judge = self.discriminator
        assert judge is not None
        fake = judge(part.image, part.maps)
        if not self.config.wrong_poses:
            return fake
        return torch.cat([fake, judge(part.source, part.source_maps.roll(1, dims=0))])

    def gradient_penalty(self, part: Made) -> Tensor:
        """R1 at the sources; their heat maps are given."""
        judge = self.discriminator
        assert judge is not None
        return r1(lambda x: judge(x, part.source_maps), part.source, self.config.r1_gamma / 2)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the averaged weights towards the new ones; random projections are the newest."""
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - self.config.ema)
        for mean, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    def rate(self, step: int) -> float:
        """Constant for a share of the steps, then a cosine to a twentieth; first, and after each
        growth, a warm-up.
        """
        config = self.config
        begun = max((x for x in config.grow_at if x <= step), default=0)
        warm = min(1, (step - begun + 1) / config.warm_up_steps)
        factor = warm_up_cosine(step, config.steps, hold=config.hold, least=0.05)
        return config.learning_rate * warm * factor

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.in_bfloat16)

    @torch.no_grad()
    def pictures_of(self, step: int) -> dict[str, Tensor]:
        """Source, truth and result of a few, side by side."""
        batch = self.draw(step / self.config.steps)[0].batch
        with self.autocast():
            image = self.average(batch.source, batch.source_maps, batch.target_maps).image.float()
        rows = torch.cat([batch.source, batch.truth, image], dim=3)[:4]
        return {"source, truth, result": (torch.cat(list(rows), dim=1) + 1) / 2}


def groups(generator: Generator) -> list[dict[str, object]]:
    """Group parameters: temperatures learn five times as fast as the rest."""
    learnt = {name: p for name, p in generator.named_parameters() if p.requires_grad}
    hot = [p for name, p in learnt.items() if name.endswith("log_temperature")]
    rest = [p for name, p in learnt.items() if not name.endswith("log_temperature")]
    return [{"params": rest, "factor": 1.0}, {"params": hot, "factor": 5.0}]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def clipped(module: nn.Module, largest: float) -> float:
    """Clip the gradient and return the norm that it had."""
    return torch.nn.utils.clip_grad_norm_(module.parameters(), largest).item()


def train(
    config: TrainConfig,
    pictures: Pictures | None = None,
    watch: Callable[[Trainer, int], dict[str, float]] | None = None,
) -> Trainer:
    """Train, or go on training, and return the networks.

    Args:
        config: The options.
        pictures: Instead of the training split of `config.data`.
        watch: Called after every step with how many have been taken; what it returns is logged.
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
    if trainer.perceptual is not None and config.vgg is None:
        print("no --vgg given: the perceptual loss compares features of the recogniser of figures")

    def advance(step: int) -> dict[str, float]:
        return trainer.advance(step) | (watch(trainer, step + 1) if watch else {})

    run(
        config.out,
        trainer.parts,
        advance,
        config.steps,
        seed=config.seed * count + rank,
        facts=facts(config, count),
        save_every_s=config.save_every_s,
        pictures=trainer.pictures_of,
        writes=rank == 0,
        prepare=trainer.prepare,
    )
    if count > 1:
        torch.distributed.destroy_process_group()
    return trainer


def check_fit(config: TrainConfig, pictures: Pictures) -> None:
    if pictures.size != config.model.size:
        raise ValueError(f"pictures have {pictures.size} pixels, the model {config.model.size}")
    if config.setting in ("paired", "mixed", "equation2") and not len(pictures.pairs):
        raise ValueError(f"setting {config.setting!r} needs pairs, and {config.data} has none")
    if config.true_pairs and open_truth(config.data, "train") is None:
        raise ValueError(
            f"--true-pairs needs drawn figures with their truth; {config.data} is none"
        )
    if config.setting == "unpaired" and not config.weights.gan:
        raise ValueError("setting 'unpaired' needs a discriminator: give --weights.gan 1")
    least = config.accumulate * (2 if config.setting == "mixed" or config.wrong_poses else 1)
    if config.batch % config.accumulate or config.batch < least:
        raise ValueError(
            f"a batch of {config.batch} in {config.accumulate} parts: expected a multiple, and at "
            f"least {least} samples in the setting {config.setting!r}"
            f"{' with --wrong-poses' if config.wrong_poses else ''}"
        )


def main(arguments: list[str]) -> Trainer:
    """Train as the command line says."""
    if arguments[:1] == ["paper"]:
        default = paper(tyro.MISSING, tyro.MISSING)
        return train(tyro.cli(TrainConfig, args=arguments[1:], default=default))
    return train(tyro.cli(TrainConfig, args=arguments))


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
