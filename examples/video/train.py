"""Train the network with each attention for the same time.

    .venv/bin/python -m examples.video.train                      all four, the same time each
    .venv/bin/python -m examples.video.train --attentions gpa

Writes into `runs/video/NAME` checkpoints, from which a run that was stopped continues, and curves
for TensorBoard; and when it is done `runs/video/NAME.safetensors`, which the other commands can
use. A finished run can be extended by more minutes or steps. A smoke run writes the same into
`runs/video/smoke`.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from examples.common.attention import folder_name
from examples.common.commands import check_count, check_number, check_seed, command
from examples.common.files import check_folder, write_json, write_tensors
from examples.common.loop import run
from examples.common.schedule import warm_up_cosine
from examples.common.untrusted import BadInput, fields, number, read_json
from examples.video.attention import ATTENTIONS, attention_of, gpa
from examples.video.clips import FEWEST, LARGEST, MOST_FRAMES, SMALLEST
from examples.video.data import Problem, draw_problem, training_scenes
from examples.video.losses import losses
from examples.video.model import Filling, FillNet, Sketch
from examples.video.weights import weights_of

WARM_UP = 20  # steps
FACTS = ("frames", "side", "kappa", "rate", "seed", "smoke")  # what a run keeps to the end


@dataclass(frozen=True)
class Options:
    """Train the network that fills clips, with one attention after another."""

    attentions: tuple[str, ...] = tuple(ATTENTIONS)
    """Of gpa, window, full, nothing, or such as "GPA(TopK(4, relevance=logit), far=block)"."""
    cpu_minutes: float = 0.9
    """For each; the number of steps follows from the time of the first ones."""
    steps: int | None = None
    """Train for so many steps instead."""
    frames: int = 8
    """Of the training clips."""
    side: int = 48
    """Pixels of the training clips."""
    kappa: int = 4
    """Blocks that a block reads while GPA is trained; fewer than later, as that is faster."""
    rate: float = 4e-3
    """Learning rate of the weights; that of the temperatures is five times higher."""
    seed: int = 0
    out: Path = Path("runs/video")
    """Folder of the results."""
    smoke: bool = False
    """Two steps on tiny clips: shows that the program runs, not that it works."""


class Clock(torch.nn.Module):
    """How much processor time the training has taken, through every interruption."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spent_s", torch.zeros((), dtype=torch.float64))


class Trainer:
    """One network, its optimiser, and the steps that they take together."""

    def __init__(self, attention: str, options: Options, scenes: list[Tensor]) -> None:
        torch.manual_seed(options.seed)
        self.attention, self.options, self.scenes = attention_of(attention), options, scenes
        if attention == "gpa":
            self.attention = partial(gpa, kappa=options.kappa)
        self.net, self.clock = FillNet(), Clock()
        named = list(self.net.named_parameters())
        logs = [p for name, p in named if name.startswith("log_")]
        others = [p for name, p in named if not name.startswith("log_")]
        self.rates = [options.rate, 5 * options.rate]
        self.optimizer = torch.optim.Adam(
            [{"params": others}, {"params": logs}], lr=options.rate, betas=(0.9, 0.98)
        )
        self.total_steps = options.steps or 1

    def advance(self, step: int) -> dict[str, float]:
        """Train on one clip, drawn from the step's seed: every attention sees the same ones."""
        start = time.process_time()
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * warm_up_cosine(step, self.total_steps, WARM_UP)
        problem, filling = self.attempt()
        terms = losses(filling, problem.truth, problem.known)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.clock.spent_s += time.process_time() - start
        return {"loss": loss.item()} | {name: x.item() for name, x in terms.items()}

    def attempt(self) -> tuple[Problem, Filling]:
        generator = torch.Generator().manual_seed(torch.initial_seed())
        options = self.options
        problem = draw_problem(self.scenes, options.frames, options.side, generator)
        return problem, self.net(Sketch.of(problem.damaged, problem.known), self.attention)

    @torch.no_grad()
    def pictures(self, step: int) -> dict[str, Tensor]:
        """Show damaged, filled and true frames, side by side."""
        torch.manual_seed(step)
        problem, filling = self.attempt()
        rows = (problem.damaged, filling.frames, problem.truth)
        return {"frames": torch.cat([torch.cat(list(x[::4]), dim=2) for x in rows], dim=1)}


def main(options: Options) -> None:
    torch.set_flush_denormal(True)
    check(options)
    scenes = training_scenes()
    for name in options.attentions:
        train(name, options, scenes)


def check(options: Options) -> None:
    """Refuse, before any work, what cannot be done."""
    if not options.attentions:
        raise BadInput(f"--attentions needs at least one of {', '.join(ATTENTIONS)}")
    for name in options.attentions:
        attention_of(name)
    check_number("--cpu-minutes", options.cpu_minutes, 0, 10_000, above=True)
    check_count("--frames", options.frames, FEWEST, MOST_FRAMES)
    check_count("--side", options.side, SMALLEST, LARGEST)
    check_count("--kappa", options.kappa)
    check_number("--rate", options.rate, 0, 1, above=True)
    check_seed(options.seed)
    if options.steps is not None:
        check_count("--steps", options.steps)
    check_folder(options.out)


def train(name: str, options: Options, scenes: list[Tensor]) -> None:
    if options.smoke:
        out = options.out / "smoke"
        options = Options((name,), steps=2, frames=4, side=16, out=out, smoke=True)
    folder = options.out / folder_name(name)
    trainer = Trainer(name, options, scenes)
    trainer.total_steps = planned_steps(folder, name, options, scenes)
    print(f"{name}: {trainer.total_steps} steps")
    facts = {key: value for key, value in asdict(options).items() if key in FACTS}
    parts = {"net": trainer.net, "optimizer": trainer.optimizer, "clock": trainer.clock}
    run(
        folder,
        parts,
        trainer.advance,
        trainer.total_steps,
        seed=options.seed,
        facts=facts,
        pictures=trainer.pictures,
    )
    keep(weights_of(options.out, name), trainer)


def planned_steps(folder: Path, name: str, options: Options, scenes: list[Tensor]) -> int:
    """Plan as many steps as the time allows: time a few once, and keep it with the checkpoints."""
    if options.steps is not None:
        return options.steps
    plan = folder / "plan.json"
    if plan.is_file():
        kept = fields(read_json(plan), {"cpu_s_a_step": (int, float)}, str(plan))
        name = f"the field 'cpu_s_a_step' of {plan}"
        seconds = number(kept["cpu_s_a_step"], name, 1e-6, 1e6)
    else:
        seconds = seconds_a_step(Trainer(name, options, scenes))
        write_json(plan, {"cpu_s_a_step": seconds})
    return max(1, round(60 * options.cpu_minutes / seconds))


def seconds_a_step(trainer: Trainer, count: int = 8) -> float:
    for step in range(count + 1):
        torch.manual_seed(step)
        trainer.advance(step)
        if step == 0:
            trainer.clock.spent_s.zero_()
    return trainer.clock.spent_s.item() / count


def keep(path: Path, trainer: Trainer) -> None:
    """Write the network alone, with what its training took."""
    facts: dict[str, Any] = {
        "steps": trainer.total_steps,
        "cpu_s": round(trainer.clock.spent_s.item(), 1),
        "frames": trainer.options.frames,
        "side": trainer.options.side,
    }
    write_tensors(path, trainer.net.state_dict(), {key: str(x) for key, x in facts.items()})


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
