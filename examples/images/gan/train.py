"""Train a generator, `python -m examples.images.gan.train --system hit --out runs/hit`.

A run that was killed goes on where it stopped; on a CPU with the same bits.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from examples.common.adversarial import LOSSES, r1
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
from examples.images.gan.augment import augment
from examples.images.gan.data import Pictured, open_data
from examples.images.gan.systems import SYSTEMS, config_of, latent_width

SHOWN = 32  # pictures of a sheet


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    out: Path  # checkpoints and curves; a run that is there goes on
    system: str = "hit"  # hit, ylg or stylenat
    preset: str = "tiny32"  # of the system
    data: str = "photographs"  # or a folder: drawn figures (their heads), or pictures by class
    attention: str | None = None  # instead of the system's own, such as GPA(12,far=block)
    steps: int = 2000
    batch: int = 16
    faster: float = 5.0  # learning rates over the system's own, for small networks
    ema: float = 0.995
    augmented: bool = True  # what the discriminator is shown
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: int = 0  # of torch on the CPU; 0: as it chooses
    seed: int = 0
    save_every_s: float = 60.0
    pictures_every: int = 250


class Trainer:
    """Networks, optimisers and one step of training."""

    def __init__(self, config: TrainConfig, pictured: Pictured) -> None:
        self.config, self.pictured = config, pictured
        self.system = SYSTEMS[config.system]
        self.model = config_of(config.system, config.preset, config.attention, pictured.classes)
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.generator = self.system.generator(self.model).to(self.device)
        self.discriminator = self.system.discriminator(self.model).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.optimizers = [
            torch.optim.Adam(network.parameters(), config.faster * rate, betas=(0.0, 0.99))
            for network, rate in zip((self.generator, self.discriminator), self.system.rates)
        ]
        self.of_discriminator, self.of_generator = LOSSES[self.system.loss]
        self.parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
            "generator_optimizer": self.optimizers[0],
            "discriminator_optimizer": self.optimizers[1],
        }
        self.shown = self.latents(SHOWN), torch.arange(SHOWN, device=self.device) % pictured.classes

    def latents(self, count: int) -> Tensor:
        return torch.randn(count, latent_width(self.model)).to(self.device)

    def advance(self, step: int) -> dict[str, float]:
        """Take one step of the discriminator and one of the generator, from one batch."""
        real, label = (x.to(self.device) for x in self.pictured.draw(self.config.batch))
        fake = self.generator(self.latents(self.config.batch), label)
        figures = self.advance_discriminator(real, fake.detach(), label, step)
        loss = self.of_generator(self.score(fake, label))
        self.update(0, loss)
        self.update_ema(step)
        return figures | {"generator": loss.item()}

    def advance_discriminator(
        self, real: Tensor, fake: Tensor, label: Tensor, step: int
    ) -> dict[str, float]:
        loss = self.of_discriminator(self.score(real, label), self.score(fake, label))
        figures = {"discriminator": loss.item()}
        if self.system.r1 and step % self.system.r1_every == 0:
            penalty = r1(lambda x: self.discriminator(x, label), real, self.system.r1)
            loss = loss + self.system.r1_every * penalty
            figures["penalty"] = penalty.item()
        self.update(1, loss)
        return figures

    def score(self, picture: Tensor, label: Tensor) -> Tensor:
        return self.discriminator(augment(picture) if self.config.augmented else picture, label)

    def update(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        """Move averaged weights towards the new ones; buffers, such as norms' means, are copied."""
        kept = min(self.config.ema, (step + 1) / (step + 10))
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - kept)
        for mean, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, Tensor]:
        """Made pictures of the same latents each time, and as many real ones below."""
        made = self.average(*self.shown).cpu()
        return {"made, and real": sheet(torch.cat([made, self.pictured.draw(SHOWN)[0]]))}


def sheet(pictures: Tensor, columns: int = 8) -> Tensor:
    """Lay pictures of -1 to 1 out in rows: (3, height, width), 0 to 1."""
    rows = [torch.cat(list(row), dim=2) for row in pictures.split(columns)]
    return (torch.cat(rows, dim=1).clamp(-1, 1) + 1) / 2


def train(config: TrainConfig, pictured: Pictured | None = None) -> Trainer:
    """Train, or go on training, and return the networks."""
    check_options(config)
    set_threads(config.threads)
    model = config_of(config.system, config.preset, config.attention, 1)
    pictured = open_data(config.data, model.size) if pictured is None else pictured
    trainer = Trainer(config, pictured)
    run(
        config.out,
        trainer.parts,
        trainer.advance,
        config.steps,
        seed=config.seed,
        facts=facts(config),
        save_every_s=config.save_every_s,
        pictures=trainer.pictures,
        pictures_every=config.pictures_every,
    )
    return trainer


def check_options(config: TrainConfig) -> None:
    check_count("--steps", config.steps)
    check_count("--batch", config.batch, 2)
    check_number("--faster", config.faster, 0, above=True)
    check_number("--ema", config.ema, 0, 1)
    check_seed(config.seed)
    check_device(config.device)
    check_folder(config.out)


def facts(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must have in common with its beginning."""
    free = ("out", "steps", "device", "threads", "save_every_s", "pictures_every")
    return {name: x for name, x in asdict(config).items() if name not in free}


if __name__ == "__main__":
    command(lambda: train(tyro.cli(TrainConfig)))
