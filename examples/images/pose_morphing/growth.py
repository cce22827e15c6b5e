"""A network that grows: trained at a small size first, then given a finer level, and so on.

The last network of a growth is a `Generator` like any other, with a stem at each size that it has
had (`ModelConfig.stems`). A new level changes nothing that coarser levels compute: they still see
the picture through their own stem, and what the finer level adds begins with a strength of 0.

Source: Karras et al. 2018, "Progressive growing of GANs"; strengths that begin at 0 are those of
Bachlechner et al. 2021, "ReZero is all you need".
"""

import re
from dataclasses import replace

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
    """Copy the weights of a network into another, whose coarser levels it becomes.

    Raises:
        ValueError: `large` has no such levels, or no stem for the finest of them.
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


def begin_with(trained: Generator, *networks: Generator) -> None:
    """Copy what was trained, in the same size or a smaller one, into each of the networks."""
    for network in networks:
        carry_over(trained, network)


def deepened(name: str, added: int) -> str:
    """Rename a weight as it is called below so many finer levels, which come first."""
    if not added:
        return name
    name = name.replace("encoder.stem.", "encoder.stems.-1.")
    return re.sub(r"\.(-?\d+)", lambda found: f".{int(found[1]) + added}", name, count=1)
