"""A network that grows: trained at a small size first, then given a finer level, and so on.

The last network of a growth is a `Generator` like any other, with a stem at each size that it has
had (`ModelConfig.stems`). A new level changes nothing that coarser levels compute: they still see
the picture through their own stem, and what the finer level adds begins with a strength of 0. The
new level itself begins with the enlarged picture and with the enlarged queries and keys, and blends
in what those find among the finer pixels.

Source: Karras et al. 2018, "Progressive growing of GANs"; strengths that begin at 0 are those of
Bachlechner et al. 2021, "ReZero is all you need".
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from examples.images.pose_morphing.attention import CopyAttention
from examples.images.pose_morphing.config import ModelConfig, parse
from examples.images.pose_morphing.model import Generator


def before_growth(config: ModelConfig, times: int) -> ModelConfig:
    """Say what the network is before its size doubles so many more times.

    Attention is full where its name says so; of a network that is small enough, everywhere.
    """
    size = config.sizes[times]
    return replace(
        config,
        size=size,
        channels=config.channels[times:],
        stems=config.stems - times,
        attention="FULL" if parse(config.attention).is_full(size) else config.attention,
    )


def carry_over(small: Generator, large: Generator) -> None:
    """Copy the weights of a network into another, whose coarser levels it becomes; the others join.

    Raises:
        ValueError: `large` has no such levels, or no stem for the finest of them.
    """
    for level in reversed(range(replace_levels(large, small))):
        join(large, level)


def replace_levels(large: Generator, small: Generator) -> int:
    """Copy the weights of a network into another; return how many levels of that are finer.

    Raises:
        ValueError: As for `carry_over`.
    """
    added = len(large.config.channels) - len(small.config.channels)
    carried = {deepened(name, added): x for name, x in small.state_dict().items()}
    own = large.state_dict()
    shapes = {name: own[name].shape for name in carried if name in own}
    if (
        added < 0
        or small.config.size != large.config.sizes[added]
        or shapes != {name: x.shape for name, x in carried.items()}
    ):
        raise ValueError(
            f"a network of {small.config.size} pixels and {small.config.channels} channels with "
            f"{small.config.stems} stems is no part of one of {large.config.size} pixels and "
            f"{large.config.channels} channels with {large.config.stems}"
        )
    large.load_state_dict(own | carried)
    return added


def coarser_part(large: Generator, times: int) -> Generator:
    """Take the levels below the finest ones as a network of their own, as it was before growth.

    Raises:
        ValueError: It has not grown so often.
    """
    if not 0 <= times < large.config.stems:
        raise ValueError(f"a network of {large.config.stems} stems has not grown {times} times")
    small, weights = Generator(before_growth(large.config, times)), large.state_dict()
    small.load_state_dict({name: weights[deepened(name, times)] for name in small.state_dict()})
    return small


@torch.no_grad()
def join(generator: Generator, level: int) -> None:
    """Let a level begin with what the next coarser one has arrived at."""
    colours = generator.to_rgb[level]
    colours.weight.zero_()
    colours.bias[:3].zero_()
    attention, coarser = generator.attentions[level], generator.attentions[level + 1]
    if generator.config.pyramid and isinstance(attention, CopyAttention):
        for conv in (attention.to_query, attention.to_key):
            conv.weight.zero_()
            conv.bias.zero_()
    if generator.config.temperature and isinstance(attention, CopyAttention):
        closer = 2 * math.log(2)  # enlarged, neighbours are 4 times closer in square distance
        attention.log_temperature.copy_(coarser.log_temperature + closer)


def begin_with(trained: Sequence[Generator], network: Generator) -> None:
    """Copy what was trained into a network, the last one last; levels of none of them join.

    Of one that is larger, its coarser levels are copied.

    Raises:
        ValueError: One of them is no part of the network, nor the network of it.
    """
    finer = [replace_levels(network, fitting(each, network)) for each in trained]
    for level in reversed(range(min(finer))):
        join(network, level)


def fitting(trained: Generator, network: Generator) -> Generator:
    """Take away the levels that a network is too small for."""
    surplus = len(trained.config.channels) - len(network.config.channels)
    return coarser_part(trained, surplus) if surplus > 0 else trained


def deepened(name: str, added: int) -> str:
    """Rename a weight as it is called below so many finer levels, which come first."""
    if not added:
        return name
    name = name.replace("encoder.stem.", "encoder.stems.-1.")
    return re.sub(r"\.(-?\d+)", lambda found: f".{int(found[1]) + added}", name, count=1)
