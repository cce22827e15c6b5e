"""The systems by name: their networks behind one call, their losses and their rates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from examples.common import stylegan2 as parts
from examples.common.attention import operator_of
from examples.common.untrusted import BadInput
from examples.images.gan import hit, stylegan2, stylenat, wavelets, ylg

SMALL = 64  # pictures up to this side have narrow discriminators


@dataclass(frozen=True)
class Regularizers:
    """What is added to the losses.

    Args:
        r1: Gamma as of `adversarial.r1`; 0 for none.
        r1_every: Steps between penalties, which count as many times more.
        path_length: Weight of the path length; 0 for none.
        path_length_every: Steps between, as of R1; it sees half of the batch.
        bcr: Weight of the balanced consistency; 0 for none.
        clip: Largest norm of the discriminator's gradient; 0 for any.
    """

    r1: float = 0.0
    r1_every: int = 1
    path_length: float = 0.0
    path_length_every: int = 4
    bcr: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True)
class System:
    """What a generative network is made of, and how it is trained where it comes from.

    Args:
        presets: Configurations of the generator.
        generator, discriminator: Make the networks of one; both take (input, label).
        loss: A name of `adversarial.LOSSES`.
        rates: Learning rates of the generator and the discriminator.
        added: To the losses.
    """

    presets: dict[str, Any]
    generator: Callable[[Any], nn.Module]
    discriminator: Callable[[Any], nn.Module]
    loss: str
    rates: tuple[float, float]
    added: Regularizers


class Unconditional(nn.Module):
    """A network that takes no label."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x)


def small_widths(size: int) -> tuple[int, ...]:
    """Return channels of a discriminator that a CPU trains, from `size` down to 4 pixels."""
    return (16, 32, 64, 64, 64)[: size.bit_length() - 2] if size <= SMALL else ()


def _hit_discriminator(config: Any) -> nn.Module:
    widths = small_widths(config.size) or hit.official_widths(config.size)
    return Unconditional(hit.Discriminator(widths))


def _wavelet_discriminator(config: Any) -> nn.Module:
    widths = small_widths(config.size)[1:] or wavelets.official_widths(config.size)
    return Unconditional(wavelets.Discriminator(widths))


def _stylegan2_discriminator(config: Any) -> nn.Module:
    widths = small_widths(config.size) or hit.official_widths(config.size)
    return Unconditional(parts.Discriminator(3, widths, 16))


SAGAN_RATES = 1e-4, 4e-4
SYSTEMS = {
    "hit": System(
        hit.PRESETS,
        lambda config: Unconditional(hit.Generator(config)),
        _hit_discriminator,
        "non_saturating",
        (1e-4, 1e-4),
        Regularizers(r1=10.0, bcr=10.0),
    ),
    "ylg": System(
        ylg.PRESETS, ylg.Generator, ylg.Discriminator, "hinge", SAGAN_RATES, Regularizers()
    ),
    "sagan": System(
        ylg.SAGAN_PRESETS, ylg.Generator, ylg.Discriminator, "hinge", SAGAN_RATES, Regularizers()
    ),
    "stylenat": System(
        stylenat.PRESETS,
        lambda config: Unconditional(stylenat.Generator(config)),
        _wavelet_discriminator,
        "non_saturating",
        (5e-5, 2e-4),
        Regularizers(r1=5.0, r1_every=16, bcr=10.0, clip=5.0),
    ),
    "stylegan2": System(
        stylegan2.PRESETS,
        lambda config: Unconditional(stylegan2.Generator(config)),
        _stylegan2_discriminator,
        "non_saturating",
        (2e-3, 2e-3),
        Regularizers(r1=5.0, r1_every=16, path_length=2.0),
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
