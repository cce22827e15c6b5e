"""Learn what to select: colour a grey, shuffled photograph from its coloured original.

    python -m examples.images.learnt_selection --out out/learnt_selection

A photograph is cut into blocks and shuffled, and its colour is taken away. Each site must read its
colour from the original, so its cell must select the one block out of 64 that it came from. What to
select is decided by a router: one linear map of channels of which a few describe the texture and
the others are noise, far stronger. Nothing but the selection depends on the router. Under the hard
rule no gradient reaches it, so it stays what it was at random; the learnt rules train it through
the bias of their slots. All of them are tested with the same hard `TopK`, on a photograph that they
were never trained on. With a far field the blocks that are not selected take part through means,
which tells the router nothing, as it has no part in them.

Writes `curves.png` (loss on the training photographs, share of the right blocks found on the
others) and `result.json`, where errors are mean squared colour errors in [0, 1]^2.
"""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro
from einops import rearrange
from matplotlib.figure import Figure
from skimage import data as photographs
from torch import Tensor, nn
from tqdm import tqdm

import ndgpa
from examples.common.commands import check_count, check_number, command
from examples.common.figures import save_figure
from examples.common.files import check_folder, write_json
from examples.common.untrusted import BadInput

SIDE = 32  # pixels
BLOCK = 4  # pixels
NOISE = 6  # channels
KEPT = 4  # blocks of 64
SPACE = ndgpa.Image((SIDE, SIDE), BLOCK)


class Way(NamedTuple):
    """How blocks are selected, and how the others take part."""

    rule: ndgpa.Rule
    far: Literal["site", "block"] | None = None


HARD, THROUGH = ndgpa.TopK(KEPT), ndgpa.StraightThrough(ndgpa.TopK(KEPT))
WAYS = {
    "hard": Way(HARD),
    "hard, far field": Way(HARD, "site"),
    "straight-through": Way(THROUGH),
    "straight-through, far field": Way(THROUGH, "site"),
    "perturbed": Way(ndgpa.PerturbedTopK(KEPT, sigma=1.0, samples=32, at_most=16)),
    "projection": Way(ndgpa.SoftTopK(KEPT, temperature=2.0, at_most=16)),
}


@dataclass
class Options:
    """Options of the run."""

    out: Path = Path("out/learnt_selection")
    steps: int = 300
    batch: int = 4
    seeds: int = 3
    ways: tuple[str, ...] = tuple(WAYS)
    learning_rate: float = 0.02


@dataclass
class Batch:
    router_query: Tensor  # (b, n, channels)
    router_key: Tensor
    query: Tensor  # (b, n, channels): grey and the place in the block
    key: Tensor
    source: Tensor  # (b, n, 3)
    target: Tensor  # (b, n, 3)
    right: Tensor  # (b, cells): the block that each cell came from


@cache
def half_size(name: str) -> Tensor:  # (3, h, w) in [0, 1]
    photo = torch.from_numpy(getattr(photographs, name)()).permute(2, 0, 1) / 255
    return nn.functional.avg_pool2d(photo, 2)


def crops(names: list[str], count: int, generator: torch.Generator) -> Tensor:  # (b, 3, h, w)
    """Draw random crops of photographs at half their resolution."""
    taken = []
    for _ in range(count):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        photo = half_size(name)
        top, left = (
            int(torch.randint(size - SIDE, (), generator=generator)) for size in photo.shape[1:]
        )
        taken.append(photo[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(taken)


def make(images: Tensor, generator: torch.Generator) -> Batch:
    """Shuffle the blocks of each image; describe the sites of both."""
    count, blocks = len(images), SPACE.num_blocks
    source = rearrange(images, "b c h w -> b (h w) c")
    grey = images.mean(dim=1, keepdim=True)
    across = nn.functional.pad(grey, (0, 1, 0, 0), mode="replicate").diff(dim=3).abs()
    down = nn.functional.pad(grey, (0, 0, 0, 1), mode="replicate").diff(dim=2).abs()
    texture = torch.cat([3 * grey - 1.5, 6 * across, 6 * down], dim=1)
    texture = rearrange(texture, "b c h w -> b (h w) c")
    place = torch.eye(BLOCK**2).repeat(blocks, 1)[_site_order()]
    fine = torch.cat([texture[..., :1], place.expand(count, -1, -1)], dim=-1)
    right = torch.stack([torch.randperm(blocks, generator=generator) for _ in range(count)])
    moved = SPACE.blocks[right].flatten(1)[:, _site_order()]  # (b, n): where a site came from
    take = torch.arange(count)[:, None]
    grain = 0.05 * torch.randn(texture[..., :1].shape, generator=generator)
    shuffled = texture[take, moved] + grain
    return Batch(
        torch.cat([shuffled, _noise(count, generator)], dim=-1),
        torch.cat([texture, _noise(count, generator)], dim=-1),
        torch.cat([shuffled[..., :1], fine[take, moved][..., 1:]], dim=-1),
        fine,
        source,
        source[take, moved],
        right,
    )


def _site_order() -> Tensor:
    """Return where each site stands among the sites listed block after block."""
    return SPACE.blocks.flatten().argsort()


def _noise(count: int, generator: torch.Generator) -> Tensor:
    """Draw channels that are constant in a block and carry no information."""
    return (
        2 * torch.randn(count, SPACE.num_blocks, NOISE, generator=generator)[:, SPACE.block_of_site]
    )


class Colourer(nn.Module):
    """Reads colour where the router sends it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(3 + NOISE, 8, bias=False)
        self.reader = nn.Linear(1 + BLOCK**2, 16, bias=False)

    def forward(self, batch: Batch, way: Way) -> tuple[Tensor, ndgpa.Selection]:
        routes = (self.router(x)[:, None] for x in (batch.router_query, batch.router_key))
        selection = ndgpa.select(*routes, SPACE, way.rule, scale=1.0, affinity="euclidean")
        query, key = (4 * self.reader(x)[:, None] for x in (batch.query, batch.key))
        out = ndgpa.attend(
            query, key, batch.source[:, None], selection, SPACE, scale=1.0, far=way.far
        )
        return out[:, 0], selection


def train(name: str, seed: int, options: Options) -> dict[str, list[float]]:
    """Train in one way; test it with the hard rule."""
    way = WAYS[name]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Colourer()
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate)
    held_out = make(crops(["coffee"], 16, generator), generator)
    curves: dict[str, list[float]] = {"loss": [], "found": [], "error": [], "step": []}
    steps = tqdm(range(options.steps), f"{name}, seed {seed}", leave=False, disable=None)
    for step in steps:
        batch = make(crops(["astronaut", "chelsea", "rocket"], options.batch, generator), generator)
        out, _ = model(batch, way)
        loss = (out - batch.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["loss"].append(loss.item())
        if step % 25 == 24 or step == options.steps - 1:
            with torch.no_grad():
                out, selection = model(held_out, Way(HARD, way.far))
            found = (selection.blocks[:, 0] == held_out.right[..., None]).any(dim=-1)
            curves["found"].append(found.float().mean().item())
            curves["error"].append((out - held_out.target).square().mean().item())
            curves["step"].append(step + 1)
    return curves


def draw(runs: dict[str, list[dict[str, list[float]]]], path: Path) -> None:
    """Draw the mean over the seeds, and the range between them."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curves in runs.items():
        losses = np.array([np.convolve(c["loss"], np.ones(20) / 20, "valid") for c in curves])
        steps = np.arange(losses.shape[1]) + 20
        left.plot(steps, losses.mean(0), label=name)
        left.fill_between(steps, losses.min(0), losses.max(0), alpha=0.2)
        found = np.array([c["found"] for c in curves])
        right.plot(curves[0]["step"], found.mean(0), label=name)
        right.fill_between(curves[0]["step"], found.min(0), found.max(0), alpha=0.2)
    left.set(xlabel="step", ylabel="squared colour error, training", yscale="log")
    right.axhline(KEPT / SPACE.num_blocks, color="grey", linestyle=":", label="chance")
    right.set(xlabel="step", ylabel="right block selected, new photographs", ylim=(0, 1))
    named = right.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, path, dpi=120)


def main(options: Options) -> None:
    check_folder(options.out)
    check_count("--steps", options.steps)
    check_count("--batch", options.batch, most=1000)
    check_count("--seeds", options.seeds, most=1000)
    unknown = [name for name in options.ways if name not in WAYS]
    if unknown or not options.ways:
        raise BadInput(f"--ways takes some of {', '.join(map(repr, WAYS))}; got {options.ways}")
    check_number("--learning-rate", options.learning_rate, 0, 10, above=True)
    runs = {
        name: [train(name, seed, options) for seed in range(options.seeds)] for name in options.ways
    }
    draw(runs, options.out / "curves.png")
    result = {
        name: {
            "error": [c["error"][-1] for c in curves],
            "found": [c["found"][-1] for c in curves],
        }
        for name, curves in runs.items()
    }
    about = {"torch": torch.__version__, "machine": platform.machine(), **vars(options)}
    about.pop("out")
    write_json(options.out / "result.json", about | {"rules": result})
    for name, values in result.items():
        error, found = np.mean(values["error"]), np.mean(values["found"])
        print(f"{name:27} error {error:.4f}   right block selected {found:.3f}")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
