"""What the attention of each level takes in memory."""

import torch

from examples.images.pose_morphing.euclidean import EuclideanByDot
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.measures.tasks import Task, part_of
from examples.images.pose_morphing.model import Generator
from ndgpa import GPA, Full
from ndgpa.analysis import full_entries, gpa_entries, low_rank_entries, peak_bytes
from ndgpa.operators import Nystrom, Performer


def attention_bytes(level: Level, value_channels: int) -> int:
    """The most that forward and backward of this level's attention hold at once, one picture.

    Queries, keys and values do not count, their gradients and the output do. Source: footnote 3 of
    Jetchev et al. 2021, who measured a GPU's allocator so.

    Args:
        level: Of a morph; its shapes count, and its device.
        value_channels: Features of the values.
    """
    query, key = (x[:1].detach().float().requires_grad_() for x in (level.query, level.key))
    value = torch.ones(*key.shape[:3], value_channels, device=key.device, requires_grad=True)

    def forward_and_backward() -> None:
        level.operator(query, key, value, level.structure).sum().backward()

    forward_and_backward()  # tables that a structure keeps are not of this call
    for x in (query, key, value):
        x.grad = None
    return peak_bytes(forward_and_backward, key.device)


def level_entries(level: Level) -> int:
    """Count the entries of the affinity matrices of this level, one picture and head.

    Source: section 2.2 of Jetchev et al. 2021; of the low-rank ones both factors.
    """
    operator, sites = level.operator, level.structure.num_sites
    operator = operator.operator if isinstance(operator, EuclideanByDot) else operator
    match operator:
        case GPA(rule=int(kappa)):
            return gpa_entries(level.structure, kappa).total
        case Full():
            return full_entries(sites)
        case Nystrom(landmarks=int(rank)):
            return low_rank_entries(rank, sites) + rank**2
        case Performer():
            return low_rank_entries(len(operator.projection), sites)
    raise ValueError(f"the entries of {operator} are not known")


@torch.no_grad()
def levels_of(generator: Generator, task: Task, device: torch.device) -> list[Level]:
    """Return the levels of the first picture of a task."""
    batch = part_of(task, torch.arange(1)).batch
    inputs = (batch.source, batch.source_maps, batch.target_maps)
    return generator(*(x.to(device) for x in inputs)).levels


def entries_of(generator: Generator, task: Task) -> dict[str, int]:
    """Count the entries of each level's attention, by its size, the finest first."""
    levels = levels_of(generator, task, torch.device("cpu"))
    return {f"{level.size[0]}x{level.size[1]}": level_entries(level) for level in levels}


@torch.no_grad()
def level_bytes(generator: Generator, task: Task, device: torch.device) -> dict[str, int]:
    """Measure the memory of each level's attention, by its size, the finest first."""
    config = generator.config
    widths = dict(zip(config.sizes, config.channels))
    levels = levels_of(generator, task, device)
    values = {level.size: widths[level.size] + 3 * config.copy_rgb for level in levels}
    with torch.enable_grad():
        return {
            f"{level.size[0]}x{level.size[1]}": attention_bytes(level, values[level.size])
            for level in levels
        }
