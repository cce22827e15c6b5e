"""Does attention that reads few blocks learn correspondence, with a far field or without?

PYTHONPATH=. python benchmarks/learning.py [--folder runs/learning] [--steps 200]

The task: a 16x16 texture of white noise is moved by an unknown translation (around the borders),
and each site of the moved one is to say what stands at its place in the first: three numbers that
are independent of the texture. Encoders of two convolutions make queries and keys; nothing but the
loss on the output teaches them. Blocks are 2x2, and 4 of 64 are read. `error` is the relative
error on 64 pairs that are never trained on; at 1 nothing is found. Seeds 0, 1 and 2 set the
weights and the training pairs. A run that has ended is kept in the folder and not run again.

Columns: error after every 50 steps, and `ms` of processor time a step.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write
from torch import Tensor, nn
from tqdm import tqdm

import ndgpa
from ndgpa import Refine, TopK

SIDE, FEATURES, BATCH, EVERY = 16, 16, 8, 50
IMAGE = ndgpa.Image((SIDE, SIDE), 2)
OPERATORS: dict[str, Any] = {
    "GPA(4)": ndgpa.GPA(4),
    'GPA(4, far="block")': ndgpa.GPA(4, far="block"),
    "GPA(Refine(TopK(16), 4))": ndgpa.GPA(Refine(TopK(16), 4)),
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


def main(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    runs = [(name, seed) for seed in range(3) for name in OPERATORS]
    for number, (name, seed) in enumerate(tqdm(runs)):
        path = folder / f"{number}.json"
        if not path.exists():
            path.write_text(json.dumps(learn(OPERATORS[name], seed, steps)))
        rows.append({"operator": name, "seed": seed} | json.loads(path.read_text()))
    write("far_field_learning", __doc__.splitlines()[0] if __doc__ else "", rows, steps=steps)
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    for color, name in enumerate(OPERATORS):
        for row in (row for row in rows if row["operator"] == name):
            steps = [int(k.removeprefix("error_")) for k in row if k.startswith("error_")]
            errors = [row[f"error_{step}"] for step in steps]
            label = name if row["seed"] == 0 else None
            axis.plot([0, *steps], [1, *errors], color=f"C{color}", label=label)
    axis.set(xlabel="step", ylabel="relative error, held out", ylim=(0, 1.05))
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "far_field_learning.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps)
