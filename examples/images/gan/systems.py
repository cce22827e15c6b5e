"""The systems by name: their networks behind one call, their losses and their rates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from examples.common.untrusted import BadInput
from examples.images.gan import hit, stylenat, ylg
from examples.images.gan.attention import operator_of


@dataclass(frozen=True)
class System:
    """What a generative network is made of, and how it is trained where it comes from.

    Args:
        presets: Configurations of the generator.
        generator, discriminator: Make the networks of one; both take (input, label).
        loss: A name of `losses.LOSSES`.
        rates: Learning rates of the generator and the discriminator.
        r1: Gamma as of `losses.r1`; 0 for none.
        r1_every: Steps between penalties, which count as many times more.
    """

    presets: dict[str, Any]
    generator: Callable[[Any], nn.Module]
    discriminator: Callable[[Any], nn.Module]
    loss: str
    rates: tuple[float, float]
    r1: float
    r1_every: int


class Unconditional(nn.Module):
    """A network that takes no label."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x)


def _residual(config: Any) -> nn.Module:
    """The discriminator of HiT; narrow for small pictures."""
    return Unconditional(hit.Discriminator(config.size, widest=512 if config.size > 64 else 64))


SYSTEMS = {
    "hit": System(
        hit.PRESETS,
        lambda config: Unconditional(hit.Generator(config)),
        _residual,
        "non_saturating",
        (1e-4, 1e-4),
        10.0,
        1,
    ),
    "ylg": System(ylg.PRESETS, ylg.Generator, ylg.Discriminator, "hinge", (1e-4, 4e-4), 0.0, 1),
    "stylenat": System(
        stylenat.PRESETS,
        lambda config: Unconditional(stylenat.Generator(config)),
        _residual,
        "non_saturating",
        (5e-5, 2e-4),
        5.0,
        16,
    ),
}


def config_of(system: str, preset: str, attention: str | None, classes: int) -> Any:
    """Look a configuration up, with another attention in it if one is named.

    Raises:
        BadInput: No such system, preset or attention.
    """
    if system not in SYSTEMS:
        raise BadInput(f"no system {system!r}; expected one of {', '.join(SYSTEMS)}")
    presets = SYSTEMS[system].presets
    if preset not in presets:
        raise BadInput(f"{system} has no preset {preset!r}; expected one of {', '.join(presets)}")
    config = presets[preset]
    if attention is not None:
        operator_of(attention)
        config = replace(config, attention=attention)
    return replace(config, classes=classes) if hasattr(config, "classes") else config


def latent_width(config: Any) -> int:
    return getattr(config, "latent", None) or config.style
