"""Turn the self-attention of a model into GPA, and back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ndgpa import arguments
from ndgpa.attention.far_field import Far
from ndgpa.functional import as_rule
from ndgpa.integrations.diffusers.attention import Processor
from ndgpa.integrations.diffusers.families import FAMILIES, Family
from ndgpa.integrations.diffusers.grids import Shape
from ndgpa.integrations.spaces import Blocks, PerAxis, Recent
from ndgpa.operators import GPA
from ndgpa.selection import Rule
from ndgpa.structures import Sampling, SpatialStructure, with_tokens

HOOKS = "ndgpa_hooks"  # where a model keeps the handles of what tells its grid


def enable(
    model: nn.Module,
    rule: Rule | int,
    *,
    block: PerAxis,
    cell: PerAxis = 1,
    layers: Iterable[int] | None = None,
    read: Sampling | None = None,
    far: Far | None = None,
    backend: str | None = None,
) -> list[str]:
    """Turn the self-attention of a diffusers model into GPA, in place.

    Known are Wan (also VACE), LTX-Video, HunyuanVideo, CogVideoX, Flux, DiT and UNet2DCondition,
    alone or within another module. The latent may have another size at each call. Text that shares
    the attention with the latent reads everything and is read by all; padding of the text is left
    out. Cross-attention stays as it is.

    Call it again for other layers with another rule.

    Args:
        model: The model, such as `pipe.transformer` or `pipe.unet`, or what holds it.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        block: Tokens of a block along each axis of the latent: (frames, height, width) for video,
            (height, width) for images; one int serves all axes. An axis that is shorter is one
            block.
        cell: Blocks of a cell along each axis, likewise.
        layers: The numbers of the self-attention layers to change; None means all.
        read, far, backend: As for `ndgpa.gpa`.

    Returns:
        The names of the attention modules that have changed.

    Raises:
        ValueError: The model is not known, its attention has a processor of another kind, or an
            argument does not fit.
        TypeError: An argument is of a wrong type.
    """
    operator = GPA(as_rule(rule), read=read, far=far, backend=backend)  # type: ignore[arg-type]
    blocks = Blocks(block, cell)
    modules = _modules(model, blocks)
    wanted = _layers(layers, len(modules))
    for module in modules:
        module.check()
    for part, family in _known(model).values():
        if HOOKS not in vars(part):
            setattr(part, HOOKS, family.follow(part))
    changed = [module for number, module in enumerate(modules) if number in wanted]
    for module in changed:
        module.attend_by(operator)
    return [module.name for module in changed]


def disable(model: nn.Module) -> None:
    """Give a model the attention back that it had before `enable`; nothing where it has that."""
    for module in model.modules():
        for handle in vars(module).pop(HOOKS, ()):
            handle.remove()
        processor = vars(module).get("processor")
        if isinstance(processor, Processor):
            module.processor = processor.replaced


@dataclass(frozen=True)
class SelfAttention:
    """A module that attends to a latent."""

    name: str
    attn: Any
    processor: type[Processor]
    space: "LatentSpace"

    def check(self) -> None:
        """Refuse to stand in for a processor that does something else."""
        known, here = self.processor.replaces, self.attn.processor
        if type(here).__name__ in known or isinstance(here, Processor):
            return
        raise ValueError(
            f"{self.name} attends by {type(here).__name__}; GPA can only take the place of "
            f"{arguments.listed(known)}"
        )

    def attend_by(self, operator: GPA) -> None:
        here = self.attn.processor
        replaced = here.replaced if isinstance(here, Processor) else here
        self.attn.processor = self.processor(operator, self.space, replaced)


def _modules(model: Any, blocks: Blocks) -> list[SelfAttention]:
    found = []
    for prefix, (part, family) in _known(model).items():
        space = LatentSpace(type(part).__name__, blocks, family.processor.text)
        found += [
            SelfAttention(f"{prefix}.{name}".lstrip("."), attn, family.processor, space)
            for name, attn in family.self_attention(part)
        ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no self-attention that GPA knows")
    return found


def _known(model: Any) -> dict[str, tuple[nn.Module, Family]]:
    """Find the known models within a module, by name."""
    if not isinstance(model, nn.Module):
        hint = next((part for part in ("transformer", "unet") if hasattr(model, part)), None)
        hint = "" if hint is None else f": pass its .{hint}"
        raise TypeError(f"model must be a module; got {type(model).__name__}{hint}")
    known = {
        name: (module, FAMILIES[type(module).__name__])
        for name, module in model.named_modules()
        if type(module).__name__ in FAMILIES
    }
    if not known:
        raise ValueError(
            f"GPA does not know {type(model).__name__}, only {arguments.listed(FAMILIES)}"
        )
    return known


def _layers(layers: Iterable[int] | None, count: int) -> set[int]:
    wanted = set(range(count)) if layers is None else set(layers)
    unknown = sorted(wanted - set(range(count)))
    if unknown:
        raise ValueError(f"layers names layer {unknown[0]} but the model has {count}")
    return wanted


class LatentSpace:
    """The structures of a model whose tokens are a grid, and maybe text before or after it.

    Args:
        owner: The name of the model, for errors.
        blocks: How a grid is cut.
        text: Where tokens stand that are not of the grid.
    """

    def __init__(
        self, owner: str, blocks: Blocks, text: Literal["before", "after", "none"]
    ) -> None:
        self.owner, self.blocks, self.text = owner, blocks, text
        self.recent = Recent(self._make)

    def of(self, tokens: int, grid: Shape | None) -> SpatialStructure:
        if grid is None:
            raise ValueError(
                f"the grid of these {tokens} tokens is not known: call {self.owner} itself, which "
                "is given the latent"
            )
        beside = tokens - math.prod(grid)
        if beside < 0 or (beside > 0 and self.text == "none"):
            raise ValueError(
                f"{self.owner} has {tokens} tokens but a grid of {'x'.join(map(str, grid))}"
            )
        return self.recent((tuple(map(_constant, grid)), _constant(beside)))

    def _make(self, key: tuple[Shape, int]) -> SpatialStructure:
        grid, beside = key
        structure = self.blocks(grid)
        if not beside:
            return structure
        before = self.text == "before"
        return with_tokens(
            structure, prefix=beside if before else 0, suffix=0 if before else beside
        )


def _constant(size: int) -> int:
    """Make a size a constant of the graph that is compiled; tables of symbolic sizes take minutes.

    torch can iterate over a range of known length only.
    """
    return len(range(size))
