"""The options of a training run, their bounds, and what a resumed run must have in common."""

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from examples.common.checkpoints import digest, tensors_file
from examples.common.commands import check_count, check_device, check_number, check_seed
from examples.common.files import check_folder
from examples.images.pose_morphing.config import ModelConfig, preset
from examples.images.pose_morphing.losses import R1_GAMMA

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and of ARM


@dataclass(frozen=True)
class Weights:
    """What each loss counts; 0 leaves it out. The paper has perceptual = gan = 1 alone."""

    pixels: float = 1.0
    edges: float = 1.0
    copying: float = 1.0
    texture: float = 2.0
    structure: float = 0.0
    perceptual: float = 0.0
    gan: float = 0.0
    correspondence: float = 0.1  # of full attentions, where the source of a pixel is known
    selected: float = 0.0  # the same, of attentions that select


EQUATION_2 = Weights(
    pixels=0, edges=0, copying=0, texture=0, perceptual=1, gan=1, correspondence=0
)  # of the paper


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    data: Path  # a folder of pictures, see README
    out: Path  # checkpoints and curves; a run that is there goes on
    preset: str = "small128"  # of the model
    attention: str | None = None  # instead of the preset's, e.g. NO_16
    setting: Literal["distortion", "paired", "mixed", "unpaired", "equation2"] = "mixed"
    steps: int = 13000
    batch: int = 4  # samples a step, in each process
    accumulate: int = 1  # parts that a batch is computed in
    learning_rate: float = 2e-3
    warm_up_steps: int = 50
    hold: float = 0.5  # share of the steps before the rate falls; 1: it stays
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest norm of the generator's gradient
    coarse_first: float = 0.1  # share of the steps before the attentions that select are used
    start: tuple[Path, ...] = ()  # runs or checkpoints whose weights to begin with: growth.py
    surface: Path | None = None  # weights of train_surface.py, for a model that uses them
    grow_at: tuple[int, ...] = ()  # steps at which the size doubles, up to that of the preset
    sharper: float = 1.0  # times, of logits in copying; the loss of correspondence of pairs sees 1
    true_pairs: bool = False  # pairs of drawn figures know where the source of a pixel is, too
    variety: float = 0.0  # share of the samples whose light, sharpness and compression vary
    distortion_first: float = 0.15  # share of the steps that see tau alone, in the mixed setting
    gan_from: float = 0.67  # share of the steps before the discriminator is used
    r1_gamma: float = R1_GAMMA  # weight of the discriminator's gradient penalty
    wrong_poses: bool = False  # the discriminator refuses true pictures in others' poses too
    ema: float = 0.995  # of the weights that are kept for use
    weights: Weights = field(default_factory=Weights)
    vgg: Path | None = None  # torchvision's vgg16 weights, for the perceptual loss
    lpips: Path | None = None  # its learnt heads
    bfloat16: bool | None = None  # autocast; None: where the processor computes in it
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: int = 0  # of torch on the CPU; 0: as it chooses
    seed: int = 0
    save_every_s: float = 60.0

    @property
    def in_bfloat16(self) -> bool:
        return has_bfloat16(self.device) if self.bfloat16 is None else self.bfloat16

    @property
    def model(self) -> ModelConfig:
        config = preset(self.preset)
        config = replace(config, sharper=self.sharper)
        return replace(config, attention=self.attention) if self.attention else config


def paper(data: Path, out: Path, setting: str = "equation2") -> TrainConfig:
    """Build the paper's own training: equation 2 from the first step to the last.

    Args:
        setting: "equation2" with pairs, "unpaired" without.
    """
    return TrainConfig(
        data,
        out,
        preset="paper64",
        setting=setting,  # type: ignore[arg-type]
        batch=3,
        coarse_first=0.0,
        gan_from=0.0,
        weights=EQUATION_2,
    )


def has_bfloat16(device: str) -> bool:
    """Tell whether a device computes in bfloat16; where that is emulated, float32 is faster.

    Older versions of torch do not say what a processor can do; float32 is right on any.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in BFLOAT16_INSTRUCTIONS)


def check_options(config: TrainConfig) -> None:
    """Refuse numbers out of bounds, and a folder that cannot be written into, before any work."""
    for name in ("steps", "batch", "accumulate", "warm_up_steps"):
        check_count(f"--{name.replace('_', '-')}", getattr(config, name))
    check_seed(config.seed)
    check_device(config.device)
    check_number("--save-every-s", config.save_every_s, 0.0)
    check_number("--r1-gamma", config.r1_gamma, 0.0)
    for name in ("learning_rate", "clip", "sharper"):
        check_number(f"--{name.replace('_', '-')}", getattr(config, name), 0.0, above=True)
    for name in ("coarse_first", "distortion_first", "gan_from", "ema", "hold", "variety"):
        check_number(f"--{name.replace('_', '-')}", getattr(config, name), 0.0, 1.0)
    for beta in config.betas:
        check_number("--betas", beta, 0.0, 0.999999)
    for name, weight in asdict(config.weights).items():
        check_number(f"--weights.{name}", weight, 0.0)
    check_folder(config.out)
    check_growth(config)
    if config.surface is not None and not config.model.body:
        raise ValueError(f"--surface is for a model that uses it, and {config.preset} does not")


def check_growth(config: TrainConfig) -> None:
    steps, most = config.grow_at, config.model.stems - 1
    if not all(a < b for a, b in pairwise((0, *steps))):
        raise ValueError(f"--grow-at must be steps that rise from 1, got {steps}")
    if len(steps) > most:
        raise ValueError(
            f"--grow-at names {len(steps)} steps; a network of {config.model.stems} stems can grow "
            f"{most} times"
        )
    if config.weights.gan and steps and config.gan_from * config.steps < steps[-1]:
        raise ValueError(
            "the discriminator judges the last size: --gan-from must not come before --grow-at"
        )


def facts(config: TrainConfig, processes: int = 1) -> dict[str, Any]:
    """List what a resumed run must have been made with: all but places and machines."""
    left_out = (
        "data",
        "out",
        "device",
        "threads",
        "save_every_s",
        "vgg",
        "lpips",
        "start",
        "surface",
    )
    said = {name: x for name, x in asdict(config).items() if name not in left_out}
    said["bfloat16"] = config.in_bfloat16
    if processes > 1:  # each draws samples of its own
        said["processes"] = processes
    for name, path in (("vgg", config.vgg), ("lpips", config.lpips), ("surface", config.surface)):
        if path is not None:
            said[name] = digest(path)
    if config.start:
        said["start"] = " ".join(digest(tensors_file(each)) for each in config.start)
    return json.loads(json.dumps(said | {"model": asdict(config.model)}))
