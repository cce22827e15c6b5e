"""Does attention that reads few blocks learn correspondence, with a far field or without?

PYTHONPATH=. python benchmarks/learning.py [--folder runs/learning] [--steps 800] [--seeds 0 1 2]

The task: a 16x16 texture of white noise is moved by an unknown translation (around the borders),
and each site of the moved one is to say what stands at its place in the first: three numbers that
are independent of the texture. Encoders of two convolutions make queries and keys; nothing but the
loss on the output teaches them. Blocks are 2x2, and 4 of 64 are read. `error` is the relative
error on 64 pairs that are never trained on; at 1 nothing is found. Seeds 0, 1 and 2 set the
weights and the training pairs. A run that has ended is kept in the folder and not run again.

Columns: error after every 50 steps, and `ms` of processor time a step. The
picture shows the same errors over steps and over processor time, median and range of the seeds.
"""

import argparse
import json
import re
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measure import RESULTS, write
from torch import Tensor, nn
from tqdm import tqdm

import ndgpa
from ndgpa import Codebook, Refine, TopK

SIDE, FEATURES, BATCH, EVERY = 16, 16, 8, 50
IMAGE = ndgpa.Image((SIDE, SIDE), 2)
OPERATORS: dict[str, Any] = {
    "GPA(4)": ndgpa.GPA(4),
    'GPA(4, far="block")': ndgpa.GPA(4, far="block"),
    "GPA(Refine(TopK(16), 4))": ndgpa.GPA(Refine(TopK(16), 4)),
    "GPA(Codebook(4, 64))": ndgpa.GPA(Codebook(4, 64)),
    "GPA(TopK(4, by site))": ndgpa.GPA(TopK(4, estimate="site")),
    "GPA(Refine(TopK(16, by site), 4, by site))": ndgpa.GPA(
        Refine(TopK(16, estimate="site"), 4, estimate="site")
    ),
    "Full()": ndgpa.Full(),
}


class Finder(nn.Module):
    """Encode both textures alike, attend from the moved one to the first, return its values."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator = operator
        self.encode = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(32, FEATURES, 3, padding=1, padding_mode="circular"),
        )
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def forward(self, moved: Tensor, first: Tensor, value: Tensor) -> Tensor:
        query, key = (self.encode(x).flatten(2).mT[:, None] for x in (moved, first))
        query = query * self.sharpness.exp()
        out = self.operator(query, key, value.flatten(2).mT[:, None], IMAGE)
        return out[:, 0].mT.unflatten(2, (SIDE, SIDE))


def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The moved texture, the first, its values, and where these have moved."""
    first, value = torch.randn(2, count, 3, SIDE, SIDE, generator=generator)
    moved, wanted = torch.empty_like(first), torch.empty_like(value)
    for i, by in enumerate(torch.randint(SIDE, (count, 2), generator=generator).tolist()):
        moved[i], wanted[i] = (x[i].roll(by, (1, 2)) for x in (first, value))
    return moved, first, value, wanted


def learn(operator: Any, seed: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    drawn, held = (torch.Generator().manual_seed(s) for s in (seed, 1000))
    model, test = Finder(operator), pairs(64, held)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    errors, taken = {}, 0.0
    for step in range(1, steps + 1):
        start = time.process_time()
        *inputs, wanted = pairs(BATCH, drawn)
        loss = (model(*inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken += time.process_time() - start
        if step % EVERY == 0:
            with torch.no_grad():
                out = model(*test[:3])
            errors[f"error_{step}"] = float((out - test[3]).norm() / test[3].norm())
    return errors | {"ms": 1000 * taken / steps}


def main(folder: Path, steps: int, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, name in tqdm(list(product(seeds, OPERATORS))):
        path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{seed}-{steps}.json"
        if not path.exists():
            path.write_text(json.dumps(learn(OPERATORS[name], seed, steps)))
        rows.append({"operator": name, "seed": seed} | json.loads(path.read_text()))
    write("far_field_learning", __doc__.splitlines()[0] if __doc__ else "", rows, steps=steps)
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for name in OPERATORS:
        some = [row for row in rows if row["operator"] == name]
        steps = torch.tensor([0, *(int(k[6:]) for k in some[0] if k.startswith("error_"))])
        errors = torch.tensor(
            [[1, *(row[f"error_{k}"] for k in steps[1:].tolist())] for row in some]
        )
        seconds = steps * torch.tensor([row["ms"] for row in some]).median() / 1000
        for axis, x in ((by_step, steps), (by_time, seconds)):
            axis.plot(x, errors.median(dim=0).values, label=name)
            axis.fill_between(x, errors.amin(dim=0), errors.amax(dim=0), alpha=0.2)
    by_step.set(xlabel="step", ylabel="relative error, held out", ylim=(0, 1.05))
    by_time.set(xlabel="processor time, s")
    by_time.legend(fontsize=8)
    figure.savefig(RESULTS / "far_field_learning.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps, arguments.seeds)
