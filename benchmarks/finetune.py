"""Does a vision transformer fine-tuned with GPA reach the loss of its dense twin, in less memory?

    python benchmarks/finetune.py [--quick] [--keep FOLDER]

What is done is kept in the folder, so that a run that was killed goes on there.

A DINOv2 with registers (4 layers of 64 channels, random weights) is first trained densely to name
the texture of every patch of a noisy mosaic: 16x16 patches, regions of brick, grass and gravel
from scikit-image. A patch alone says little, so patches that look alike must be read together. Then
every twin starts from these weights and is fine-tuned on mosaics of more noise, with mirrored
textures: dense twins, and twins after `ndgpa.integrations.transformers.enable`, of two seeds each.
A seed is the order of the mosaics; the held-out mosaics are the same for all. `frozen` is the model
before fine-tuning. One thread; on a shared machine the seconds are of the processor.

Columns: `attention`; `seed`; `loss`, `accuracy` cross-entropy and share of right patches on
held-out mosaics, from the mean of the last three evaluations; `step_s` median seconds of processor
time a step; `peak_MB` the most that torch's allocator held in a step above what was held before;
`peak_64_MB` the same for one picture of 64x64 patches. "dense" attends with torch's fused kernel,
which keeps no matrix of weights; "eager" is transformers' own implementation, which does.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib.pyplot as plt
import skimage.data
import torch
import torch.nn.functional as F
from measure import RESULTS, write
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

import ndgpa
from ndgpa.analysis import peak_bytes
from ndgpa.integrations.transformers import enable

SIDE, PATCH, BATCH = 16, 4, 4  # patches, pixels, pictures
REGIONS, TEXTURES = 6, ("brick", "grass", "gravel")
NOISE_BEFORE, NOISE = 0.5, 0.8  # of textures of unit variance
STEPS_BEFORE, STEPS, EVERY, HELD_OUT = 300, 120, 20, 24
SEEDS = (1, 2)
RULE, BLOCK = ndgpa.TopK(8, force=ndgpa.Own()), 2  # 9 of 64 blocks


class Segmenter(nn.Module):
    """Name the texture of every patch."""

    def __init__(self) -> None:
        super().__init__()
        config = Dinov2WithRegistersConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=SIDE * PATCH,
            patch_size=PATCH,
            num_channels=1,
            num_register_tokens=4,
            layerscale_value=1.0,
        )
        self.backbone = Dinov2WithRegistersModel(config)
        self.head = nn.Linear(64, len(TEXTURES))

    def forward(self, picture: Tensor) -> Tensor:  # (b, 1, h, w) -> (b, patches, textures)
        return self.head(self.backbone(picture).last_hidden_state[:, 5:])


class Mosaics:
    """Draw pictures whose regions (nearest to random points) have a texture each."""

    def __init__(self, noise: float, mirrored: bool, seed: int) -> None:
        self.textures = [_texture(name) for name in TEXTURES]
        if mirrored:
            self.textures = [x.flip(-1) for x in self.textures]
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures (count, 1, pixels, pixels) and the texture of each patch (count, patches)."""
        pictures, labels = zip(*(self._one() for _ in range(count)))
        return torch.stack(pictures)[:, None], torch.stack(labels).flatten(1)

    def _one(self) -> tuple[Tensor, Tensor]:
        along = torch.arange(SIDE)
        points, kinds = self._integers(SIDE, REGIONS, 2), self._integers(3, REGIONS)
        apart = (along[:, None, None] - points[:, 0]) ** 2 + (along[:, None] - points[:, 1]) ** 2
        label = kinds[apart.argmin(dim=-1)]
        of_pixel = label.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        picture = torch.stack([self._crop(x) for x in self.textures])
        picture = picture.gather(0, of_pixel[None])[0]
        noise = torch.randn(picture.shape, generator=self.generator)
        return (picture + self.noise * noise) / (1 + self.noise), label

    def _crop(self, texture: Tensor) -> Tensor:
        size = SIDE * PATCH
        row, column = self._integers(len(texture) - size, 2).tolist()
        return texture[row : row + size, column : column + size]


def _texture(name: str) -> Tensor:
    x = torch.from_numpy(getattr(skimage.data, name)()).float()
    x = F.avg_pool2d(x[None], 2)[0]
    return (x - x.mean()) / x.std()


def loss_of(model: nn.Module, picture: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(picture).flatten(0, 1), label.flatten())


def training(model: nn.Module, mosaics: Mosaics, steps: int, rate: float) -> Iterator[float]:
    """Train, and give the seconds of processor time of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    for _ in range(steps):
        picture, label = mosaics.draw(BATCH)
        begin = time.process_time()
        optimizer.zero_grad()
        loss_of(model, picture, label).backward()
        optimizer.step()
        warm_up.step()
        yield time.process_time() - begin


@torch.no_grad()
def evaluate(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    picture, label = held_out
    out = torch.cat([model(x) for x in picture.split(BATCH)])
    loss = F.cross_entropy(out.flatten(0, 1), label.flatten())
    return {"loss": loss.item(), "accuracy": (out.argmax(-1) == label).float().mean().item()}


def peak_mb(model: nn.Module, side: int, batch: int) -> float:
    picture = torch.randn(batch, 1, side * PATCH, side * PATCH)
    label = torch.zeros(batch, side * side, dtype=torch.int64)
    model.zero_grad()
    peak = peak_bytes(lambda: loss_of(model, picture, label).backward())
    model.zero_grad()
    return peak / 1e6


def memory(model: nn.Module) -> dict[str, float]:
    return {"peak_MB": peak_mb(model, SIDE, BATCH), "peak_64_MB": peak_mb(model, 64, 1)}


def twin(before: nn.Module, attention: str) -> nn.Module:
    model = copy.deepcopy(before)
    if attention == "GPA":
        enable(model, RULE, block=BLOCK)
    else:
        model.backbone.set_attn_implementation("eager" if attention == "eager" else "sdpa")
    return model


def fine_tune(
    before: nn.Module, attention: str, seed: int, steps: int, held_out: tuple[Tensor, Tensor]
) -> tuple[dict[str, Any], list[float]]:
    """A row of the table, and the losses on held-out mosaics, one for every so many steps."""
    model, seconds = twin(before, attention), []
    measured = [evaluate(model, held_out)]
    mosaics = Mosaics(NOISE, mirrored=True, seed=seed)
    bar = tqdm(training(model, mosaics, steps, 5e-4), desc=f"{attention} {seed}", total=steps)
    for step, second in enumerate(bar, start=1):
        seconds.append(second)
        if step % EVERY == 0:
            measured.append(evaluate(model, held_out))
            bar.set_postfix(measured[-1])
    row: dict[str, Any] = {"attention": attention, "seed": seed}
    row |= {name: fmean(x[name] for x in measured[-3:]) for name in measured[0]}
    return row | {"step_s": median(seconds)} | memory(model), [x["loss"] for x in measured]


def plot(curves: dict[str, list[float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, losses in curves.items():
        attention, seed = name.split()
        colour = {"dense": "tab:gray", "GPA": "tab:blue"}[attention]
        style = {str(SEEDS[0]): "-", str(SEEDS[-1]): "--"}[seed]
        steps = [EVERY * number for number in range(len(losses))]
        axes.plot(steps, losses, style, color=colour, label=f"{attention}, seed {seed}")
    axes.set(xlabel="steps of fine-tuning", ylabel="held-out loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was made and saved before, or is now."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return torch.load(path)


def trained_densely(steps: int) -> dict[str, Tensor]:
    model = Segmenter()
    first = training(model, Mosaics(NOISE_BEFORE, mirrored=False, seed=0), steps, 1e-3)
    list(tqdm(first, desc="dense, before", total=steps))
    return model.state_dict()


def main(quick: bool, folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before, steps = Segmenter(), EVERY if quick else STEPS
    steps_before = EVERY if quick else STEPS_BEFORE
    before.load_state_dict(kept(folder / "before.pt", lambda: trained_densely(steps_before)))
    held_out = Mosaics(NOISE, mirrored=True, seed=100).draw(4 if quick else HELD_OUT)
    rows: list[dict[str, Any]] = [{"attention": "frozen", **evaluate(before, held_out)}]
    rows.append({"attention": "eager", **memory(twin(before, "eager"))})
    curves = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        for attention in ("dense", "GPA"):
            job = partial(fine_tune, before, attention, seed, steps, held_out)
            row, losses = kept(folder / f"{attention}-{seed}.pt", job)
            rows.append(row)
            curves[f"{attention} {seed}"] = losses
    for line in rows:
        print(line)
    if not quick:
        plot(curves, RESULTS / "finetune.png")
        question = __doc__.splitlines()[0] if __doc__ else ""
        about = {"rule": repr(RULE), "block": BLOCK, "steps": STEPS, "every": EVERY}
        write("finetune", question, rows, **about, held_out_loss=curves)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few steps, no result file")
    parser.add_argument("--keep", type=Path, help="where to keep what is done")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(arguments.quick, arguments.keep or Path(temporary))
