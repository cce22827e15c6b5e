"""Train a generator, `python -m examples.images.gan.train --system hit --out runs/hit`.

A run that was killed goes on where it stopped; on a CPU with the same bits. Several processes:
`torchrun --nproc-per-node N -m -- examples.images.gan.train ...`; they share the batch, and the
number of them may change when a run goes on.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from examples.common.adversarial import LOSSES, PathLength, balanced_consistency, lazy_adam, r1
from examples.common.commands import (
    check_count,
    check_device,
    check_number,
    check_seed,
    command,
    set_threads,
)
from examples.common.files import check_folder
from examples.common.loop import run
from examples.common.processes import average_gradients, start_processes
from examples.common.untrusted import BadInput
from examples.images.gan.adaptive import Adaptation, Adaptive
from examples.images.gan.augment import augment
from examples.images.gan.data import Pictured, open_data
from examples.images.gan.systems import SYSTEMS, Regularizers, config_of, latent_width

SHOWN = 32  # pictures of a sheet
EMA_FROM = 10  # steps; before that the averaged weights are copies


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    out: Path  # checkpoints and curves; a run that is there goes on
    system: str = "hit"  # hit, ylg, sagan, stylenat or stylegan2
    preset: str = "tiny32"  # of the system
    data: str = "photographs"  # or a folder: drawn figures (their heads), or pictures by class
    attention: str | None = None  # instead of the system's own, such as GPA(12,far=block)
    steps: int = 2000
    batch: int = 16  # of all processes together
    rates: tuple[float, float] | None = None  # of generator and discriminator, not the system's own
    added: Regularizers | None = None  # to the losses, instead of the system's own
    ema: float = 0.999
    ema_share: float = 0.0  # of the steps so far that averages reach back at most; 0: any
    augmented: Literal["no", "differentiable", "adaptive"] = "no"  # what the discriminator is shown
    adaptation: Adaptation = field(default_factory=Adaptation)  # of the adaptive augmentation
    bfloat16: bool = False  # autocast
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: int = 0  # of torch on the CPU; 0: as it chooses
    seed: int = 0
    save_every_s: float = 60.0
    pictures_every: int = 250


class Trainer:
    """Networks, optimisers and one step of training.

    Args:
        config: The options.
        pictured: What is to be imitated.
        rank, processes: Which part of each batch is this process's, and of how many.
    """

    def __init__(
        self, config: TrainConfig, pictured: Pictured, rank: int = 0, processes: int = 1
    ) -> None:
        self.config, self.pictured, self.rank, self.processes = config, pictured, rank, processes
        self.system = SYSTEMS[config.system]
        self.model = config_of(config.system, config.preset, config.attention, pictured.classes)
        self.added = config.added or self.system.added
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.generator = self.system.generator(self.model).to(self.device)
        self.discriminator = self.system.discriminator(self.model).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.optimizers = [
            lazy_adam(network.parameters(), rate, every)
            for network, rate, every in zip(
                (self.generator, self.discriminator),
                config.rates or self.system.rates,
                (
                    self.added.path_length_every if self.added.path_length else 1,
                    self.added.r1_every,
                ),
            )
        ]
        self.of_discriminator, self.of_generator = LOSSES[self.system.loss]
        self.path_length = PathLength().to(self.device)
        self.adaptive = Adaptive(config.adaptation).to(self.device)
        self.parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
            "path_length": self.path_length,
            "adaptive": self.adaptive,
            "generator_optimizer": self.optimizers[0],
            "discriminator_optimizer": self.optimizers[1],
        }
        self.shown = self.latents(SHOWN), torch.arange(SHOWN, device=self.device) % pictured.classes

    def latents(self, count: int) -> Tensor:
        return torch.randn(count, latent_width(self.model)).to(self.device)

    def advance(self, step: int) -> dict[str, float]:
        """Take one step of the discriminator and one of the generator, from one batch."""
        real, label, latent = self.draw()
        with self.autocast():
            fake = self.generator(latent, label).float()
        figures = self.advance_discriminator(real, fake.detach(), label, step)
        self.discriminator.requires_grad_(False)
        figures |= self.advance_generator(fake, label, latent, step)
        self.discriminator.requires_grad_(True)
        self.update_ema(step)
        return figures

    def advance_generator(
        self, fake: Tensor, label: Tensor, latent: Tensor, step: int
    ) -> dict[str, float]:
        loss = self.of_generator(self.score(fake, label))
        figures = {"generator": loss.item()}
        if self.added.path_length and step % self.added.path_length_every == 0:
            penalty = self.path_penalty(latent[: max(1, len(latent) // 2)])
            loss = loss + self.added.path_length * self.added.path_length_every * penalty
            figures["path_length"] = penalty.item()
        self.update(0, loss)
        return figures

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch of pictures, labels and latents, and return this process's part of it.

        Every process draws the whole batch, so how many there are changes nothing; what is drawn
        after that differs between them. Parts are interleaved: so are the groups of which a
        discriminator takes the deviation.
        """
        drawn = (*self.pictured.draw(self.config.batch), self.latents(self.config.batch))
        if self.processes > 1:
            torch.manual_seed(int(torch.randint(2**62, ())) + self.rank)
        real, label, latent = (x[self.rank :: self.processes].to(self.device) for x in drawn)
        return real, label, latent

    def advance_discriminator(
        self, real: Tensor, fake: Tensor, label: Tensor, step: int
    ) -> dict[str, float]:
        scores = self.score(real, label), self.score(fake, label)
        loss = self.of_discriminator(*scores)
        figures = {"discriminator": loss.item()}
        figures |= {name: x.mean().item() for name, x in zip(("real", "fake"), scores)}
        if self.config.augmented == "adaptive":
            self.adaptive.observe(scores[0], self.config.batch)
            figures["strength"] = self.adaptive.strength.item()
        added = self.added
        if added.bcr:
            moved = balanced_consistency(lambda x: self.judge(x, label), real, fake, augment)
            loss = loss + added.bcr * moved
            figures["consistency"] = moved.item()
        if added.r1 and step % added.r1_every == 0:
            penalty = r1(lambda x: self.judge(x, label), real, added.r1)
            loss = loss + added.r1_every * penalty
            figures["penalty"] = penalty.item()
        self.update(1, loss, added.clip)
        return figures

    def path_penalty(self, latent: Tensor) -> Tensor:
        """Penalise the generator by the path length from its styles."""
        network: Any = self.generator.network
        styles = network.mapping(latent)[:, None].expand(-1, self.model.latents, -1)
        return self.path_length(network.of_styles, styles)

    def score(self, picture: Tensor, label: Tensor) -> Tensor:
        return self.judge(self.changed(picture), label)

    def changed(self, picture: Tensor) -> Tensor:
        """Augment a picture as the options say."""
        changes = {"no": lambda x: x, "differentiable": augment, "adaptive": self.adaptive}
        return changes[self.config.augmented](picture)

    def judge(self, picture: Tensor, label: Tensor) -> Tensor:
        with self.autocast():
            ordered = picture.contiguous(memory_format=torch.channels_last)  # quicker on a CPU
            return self.discriminator(ordered, label).float()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16)

    def update(self, which: int, loss: Tensor, clip: float = 0.0) -> None:
        network = (self.generator, self.discriminator)[which]
        self.optimizers[which].zero_grad()
        loss.backward()
        average_gradients(network)
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        self.optimizers[which].step()

    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        """Move averaged weights towards the new ones; buffers, such as norms' means, are copied."""
        kept = 0.0 if step < EMA_FROM else self.kept_at(step)
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - kept)
        for mean, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    def kept_at(self, step: int) -> float:
        """Return how much of the averages stays: less in the beginning if there is a share."""
        reach = self.config.ema_share * step or math.inf
        return min(self.config.ema, 1 - min(1.0, 1 / reach))

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, Tensor]:
        """Made pictures of the same latents each time, and as many real ones below."""
        made = self.average(*self.shown).cpu()
        return {"made, and real": sheet(torch.cat([made, self.pictured.draw(SHOWN)[0]]))}


def sheet(pictures: Tensor, columns: int = 8) -> Tensor:
    """Lay pictures of -1 to 1 out in rows: (3, height, width), 0 to 1."""
    rows = [torch.cat(list(row), dim=2) for row in pictures.split(columns)]
    return (torch.cat(rows, dim=1).clamp(-1, 1) + 1) / 2


def train(
    config: TrainConfig,
    pictured: Pictured | None = None,
    watch: Callable[[Trainer, int], dict[str, float]] | None = None,
) -> Trainer:
    """Train, or go on training, and return the networks.

    Args:
        config: The options.
        pictured: Instead of `config.data`.
        watch: Called after every step with how many have been taken; what it returns is logged.
    """
    check_options(config)
    rank, processes = start_processes(config.device)
    check_share(config, processes)
    set_threads(config.threads)
    torch.set_flush_denormal(True)
    model = config_of(config.system, config.preset, config.attention, 1)
    check_styles(config, model)
    pictured = open_data(config.data, model.size) if pictured is None else pictured
    trainer = Trainer(config, pictured, rank, processes)

    def advance(step: int) -> dict[str, float]:
        return trainer.advance(step) | (watch(trainer, step + 1) if watch else {})

    run(
        config.out,
        trainer.parts,
        advance,
        config.steps,
        seed=config.seed,
        facts=facts(config) | {"classes": pictured.classes},
        save_every_s=config.save_every_s,
        pictures=trainer.pictures,
        pictures_every=config.pictures_every,
        writes=rank == 0,
    )
    if processes > 1:
        torch.distributed.destroy_process_group()
    return trainer


def check_options(config: TrainConfig) -> None:
    check_count("--steps", config.steps)
    check_count("--batch", config.batch, 2)
    for rate in config.rates or ():
        check_number("--rates", rate, 0, above=True)
    check_number("--ema", config.ema, 0, 1)
    check_number("--ema-share", config.ema_share, 0, 1)
    check_number("--adaptation.target", config.adaptation.target, -1, 1)
    for name in ("every", "images"):
        check_count(f"--adaptation.{name}", getattr(config.adaptation, name))
    for name, weight in asdict(config.added or Regularizers()).items():
        check_number(f"--added.{name.replace('_', '-')}", weight, int(name.endswith("every")))
    check_seed(config.seed)
    check_device(config.device)
    check_folder(config.out)


def check_styles(config: TrainConfig, model: Any) -> None:
    """Refuse a penalty on styles of a system that has none."""
    if config.added and config.added.path_length and not hasattr(model, "latents"):
        raise BadInput(f"{config.system} has no styles, so no path length")


def check_share(config: TrainConfig, processes: int) -> None:
    """Refuse a batch that processes cannot share evenly."""
    if config.batch % processes:
        raise BadInput(f"--batch {config.batch} is no multiple of the {processes} processes")


def facts(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must have in common with its beginning, as JSON has it."""
    free = ("out", "data", "steps", "device", "threads", "save_every_s", "pictures_every")
    kept = {name: x for name, x in asdict(config).items() if name not in free}
    return json.loads(json.dumps(kept))


if __name__ == "__main__":
    command(lambda: train(tyro.cli(TrainConfig)))
