"""Training, stage by stage: the matcher once, then a network around it for each attention.

Every finished stage is kept in a checkpoint; a run that was killed goes on from the last one.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from examples.common.files import write_tensors
from examples.common.schedule import warm_up_cosine
from examples.common.untrusted import BadInput, read_metadata, read_tensors
from examples.images.copy_photo.data import (
    TRAINING,
    Task,
    load_photo,
    make_task,
    random_theta,
    random_views,
)
from examples.images.copy_photo.losses import copy_loss, match_loss
from examples.images.copy_photo.matching import Matcher
from examples.images.copy_photo.model import CopyNet
from ndgpa import GPA, Full, Grid, Image
from ndgpa.operators import NoAttention, Operator

FACTOR = 8  # pixels of a full-resolution picture along each side of a small one


@dataclass(frozen=True)
class Training:
    """Options; a checkpoint made with others is not used."""

    size: int = 256  # pixels of the training pictures
    match_steps: int = 300
    match_batch: int = 4
    copy_steps: int = 80
    match_rate: float = 4e-3
    copy_rate: float = 4e-3
    downsample: int = 4
    cell: int = 2
    kappas: tuple[int, ...] = (1, 2, 4, 12)  # taken in turn while GPA trains
    full_factor: int = 4  # pixels along each side of a site of full attention
    seed: int = 0


Problems = Callable[[int], tuple[Grid, Operator]]  # by the number of the step


def kinds(options: Training) -> dict[str, Problems]:
    """Say for each trained network where and how it attends at a given step of its training."""
    fine = Image((options.size, options.size), options.downsample, options.cell)
    low = options.size // options.full_factor
    coarse = Image((low, low), options.downsample, options.cell)
    kappas = options.kappas
    return {
        "gpa": lambda step: (fine, GPA(kappas[step % len(kappas)], scale=1.0)),
        "full": lambda step: (coarse, Full(scale=1.0)),
        "nothing": lambda step: (fine, NoAttention()),
    }


def trained(options: Training, checkpoint: Path, retrain: bool) -> dict[str, CopyNet]:
    """Load the networks from the checkpoint as far as it goes, and train the others."""
    saved = {} if retrain else load_stages(checkpoint, options)
    done: dict[str, dict[str, Tensor]] = {}
    photos: list[Tensor] = []

    def stage(name: str, module: torch.nn.Module, train: Callable[[], None]) -> None:
        if fits(saved.get(name, {}), module):
            module.load_state_dict(saved[name])
            done[name] = saved[name]
            return
        if name in saved:
            print(f"stage {name} of {checkpoint} is of another network: training from there")
        saved.clear()  # later stages were made on top of this one
        if not photos:
            photos.extend(load_photo(photo) for photo in TRAINING)
        train()
        done[name] = module.state_dict()
        save_stages(checkpoint, options, done)

    torch.manual_seed(options.seed)
    matcher = Matcher()
    stage("matcher", matcher, lambda: train_matcher(matcher, photos, options))
    nets = {}
    for name, problems in kinds(options).items():
        torch.manual_seed(options.seed + 1)
        net = nets[name] = CopyNet(matcher)
        stage(name, net, lambda n=net, p=problems, t=name: train_copy(t, n, p, photos, options))
    return {name: net.eval() for name, net in nets.items()}


def fits(state: dict[str, Tensor], module: torch.nn.Module) -> bool:
    """Say whether a saved state is of this very network, which a change of the program undoes."""
    wanted = {name: x.shape for name, x in module.state_dict().items()}
    return {name: x.shape for name, x in state.items()} == wanted


def train_matcher(matcher: Matcher, photos: list[Tensor], options: Training) -> None:
    """Train on pictures of half the size, degraded half as much: the small ones are as large."""
    generator = torch.Generator().manual_seed(options.seed)

    def loss(step: int) -> Float[Tensor, ""]:
        task = draw_task(photos, options.match_batch, options.size // 2, FACTOR // 2, generator)
        return match_loss(matcher(task.degraded, task.source, rounds=2), task.theta)

    minimise("matcher", matcher, loss, options.match_steps, options.match_rate)


def train_copy(
    name: str, net: CopyNet, problems: Problems, photos: list[Tensor], options: Training
) -> None:
    """Train on one picture a step; every network sees the same pictures."""
    generator = torch.Generator().manual_seed(options.seed + 1)

    def loss(step: int) -> Float[Tensor, ""]:
        task = draw_task(photos, 1, options.size, FACTOR, generator)
        return copy_loss(net(task.degraded, task.source, *problems(step)), task.target)

    minimise(name, net, loss, options.copy_steps, options.copy_rate)


def draw_task(
    photos: list[Tensor], batch: int, size: int, factor: int, generator: torch.Generator
) -> Task:
    theta = random_theta(batch, generator)
    return make_task(random_views(photos, batch, size, generator), theta, factor)


def minimise(
    name: str,
    module: torch.nn.Module,
    loss_of_step: Callable[[int], Float[Tensor, ""]],
    steps: int,
    rate: float,
) -> None:
    """Run Adam with a warm-up of 20 steps and a cosine to zero; temperatures learn 5 times faster.

    The temperatures are the parameters called log_...
    """
    wanted = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    logs = [p for n, p in wanted if n.startswith("log_")]
    others = [p for n, p in wanted if not n.startswith("log_")]
    groups = [{"params": others, "lr": rate}, {"params": logs, "lr": 5 * rate}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_cosine(step, steps, warm_up=20)
    )
    mean = None
    bar = tqdm(range(steps), desc=f"train {name}")
    for step in bar:
        optimizer.zero_grad()
        loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)


def load_stages(checkpoint: Path, options: Training) -> dict[str, dict[str, Tensor]]:
    """Load the finished stages, none where the file is missing or was made with other options."""
    if not checkpoint.is_file():
        return {}
    try:
        made_with, tensors = read_metadata(checkpoint).get("options"), read_tensors(checkpoint)
    except BadInput as error:
        print(f"{error}: training from the start")
        return {}
    if made_with != _as_text(options):
        print(f"{checkpoint} was trained with other options: training from the start")
        return {}
    states: dict[str, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        stage, _, name = key.partition("/")
        states.setdefault(stage, {})[name] = x
    print(f"{checkpoint} has the stages {', '.join(states)} (--retrain to make them anew)")
    return states


def save_stages(checkpoint: Path, options: Training, states: dict[str, dict[str, Tensor]]) -> None:
    tensors = {
        f"{stage}/{name}": x.clone()  # the stages share the matcher
        for stage, state in states.items()
        for name, x in state.items()
    }
    write_tensors(checkpoint, tensors, {"options": _as_text(options)})


def _as_text(options: Training) -> str:
    return json.dumps(asdict(options))
