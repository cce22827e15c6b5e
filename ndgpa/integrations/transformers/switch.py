"""Turn the attention of a model into GPA, and back."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ndgpa import arguments
from ndgpa.attention.far_field import Far
from ndgpa.functional import as_rule
from ndgpa.integrations.spaces import Blocks, GivenSpace, GridSpace, PerAxis, Space, wanted_layers
from ndgpa.integrations.transformers.attention import NAME, ByCall, Sparse, dense, register
from ndgpa.integrations.transformers.families import FAMILIES, Family, Input
from ndgpa.selection import Rule
from ndgpa.structures import Sampling, SpatialStructure

BEFORE = "ndgpa_before"  # where a model keeps the name of the attention that it had
HOOK = "ndgpa_hook"  # where it keeps the handle of the hook that tells the grid of a call


@dataclass(frozen=True)
class Part:
    """A model that owns attention modules, maybe within another model."""

    owner: PreTrainedModel
    attention: list[nn.Module]
    space: Space
    input: Input | None = None


def enable(
    model: nn.Module,
    rule: Rule | int,
    *,
    block: PerAxis | None = None,
    cell: PerAxis = 1,
    layers: Iterable[int] | None = None,
    structure: SpatialStructure | Callable[[int], SpatialStructure] | None = None,
    read: Sampling | None = None,
    far: Far | None = None,
    backend: str | None = None,
    ignore_dropout: bool = False,
) -> list[str]:
    """Turn the self-attention of a transformers model into GPA, in place.

    The grid is found for ViT, DeiT, DINOv2, DINOv3, AST, VideoMAE, wav2vec2, HuBERT, the encoder of
    Whisper, Llama, Qwen and Mistral, alone or within another model; pictures and sounds may change
    their size from call to call. Class and register tokens read everything and are read by all.
    Padding is left out. Decoding with a cache attends densely from the new tokens.

    Call it again for other layers with another rule.

    Args:
        model: The model, or whatever holds one.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        block: Tokens of a block along each axis of the grid; one int serves all axes. An axis that
            is shorter is one block.
        cell: Blocks of a cell along each axis, likewise.
        layers: The numbers of the layers to change; None means all.
        structure: Instead of `block` and `cell`, for a model that is not known: the structure of
            its tokens, or a function from their number to it. All attention of the model is meant.
        read, far, backend: As for `ndgpa.gpa`.
        ignore_dropout: GPA drops out no weights, and refuses to train a model that asks for it;
            True trains it without.

    Returns:
        The names of the attention modules that have changed.

    Raises:
        ValueError: The model is not known and no structure is given, or an argument does not fit.
        TypeError: An argument is of a wrong type.
    """
    operator = ByCall(as_rule(rule), read, far, backend)
    parts = _parts(model, block, cell, structure)
    wanted = wanted_layers(layers, max(len(part.attention) for part in parts))
    register()
    if not all(BEFORE in vars(part.owner) for part in parts):
        _own_config(model)
    for part in parts:  # all before any is switched: two of them may share a config
        vars(part.owner).setdefault(BEFORE, part.owner.config._attn_implementation)
    for part in parts:
        _switch(part)
        for number, module in enumerate(part.attention):
            if number in wanted:
                setattr(module, NAME, Sparse(part.space, operator, ignore_dropout))
        _leave_others_dense(model, part.owner)
    changed = {id(x) for part in parts for n, x in enumerate(part.attention) if n in wanted}
    return [name for name, module in model.named_modules() if id(module) in changed]


def disable(model: nn.Module) -> None:
    """Give a model the attention back that it had before `enable`; nothing where it has that."""
    for module in model.modules():
        if BEFORE in vars(module):
            owner: Any = module
            owner.set_attn_implementation(getattr(owner, BEFORE))
            hook = getattr(owner, HOOK, None)
            if hook is not None:
                hook.remove()
        for name in (NAME, BEFORE, HOOK):
            vars(module).pop(name, None)


# Which modules attend, on which spaces


def _parts(
    model: Any,
    block: PerAxis | None,
    cell: PerAxis,
    structure: SpatialStructure | Callable[[int], SpatialStructure] | None,
) -> list[Part]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}")
    if (block is None) == (structure is None):
        raise ValueError("enable needs either block, or a structure for a model it does not know")
    if structure is not None:
        return [_given(model, GivenSpace(structure))]
    assert block is not None
    known = [x for x in model.modules() if isinstance(x, PreTrainedModel) and _family(x)]
    if not known:
        raise ValueError(
            f"the grid of {type(model).__name__} is not known, only those of "
            f"{arguments.listed(FAMILIES)}: pass structure= for another model"
        )
    return [_known(owner, block, cell) for owner in known]


def _family(model: nn.Module) -> Family | None:
    return FAMILIES.get(type(model).__name__)


def _known(owner: PreTrainedModel, block: PerAxis, cell: PerAxis) -> Part:
    family, config = _family(owner), owner.config
    assert family is not None
    blocks = Blocks(block, cell, family.prefix(config), time_axis=0 if family.time else None)
    name = type(owner).__name__
    space = GridSpace(name, blocks, family.rank, family.grid_of(name, config))
    attention = [x for x in owner.modules() if type(x).__name__ == family.attention]
    return Part(owner, attention, space, family.input)


def _given(model: nn.Module, space: Space) -> Part:
    """All attention of a model that is not known."""
    if not isinstance(model, PreTrainedModel) or not model._can_set_attn_implementation():
        raise ValueError(
            f"{type(model).__name__} does not call transformers' AttentionInterface, so its "
            "attention cannot be changed"
        )
    attention = [x for x in model.modules() if _is_attention(x) and not _holds_attention(x)]
    return Part(model, attention, space)


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _holds_attention(module: nn.Module) -> bool:
    return any(_is_attention(x) for x in module.modules() if x is not module)


# The switch


def _own_config(model: nn.Module) -> None:
    """Copy the configs, which say what attends: another model may have been made of the same."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            module.config = copy.deepcopy(module.config, copies)


def _switch(part: Part) -> None:
    """Choose the implementation and have the grid told, once."""
    owner = part.owner
    owner.set_attn_implementation(NAME)
    if part.input is not None and HOOK not in vars(owner):
        setattr(owner, HOOK, owner.register_forward_pre_hook(part.input, with_kwargs=True))


def _leave_others_dense(model: nn.Module, owner: PreTrainedModel) -> None:
    """Attend densely from what the same config has switched, such as the decoder of Whisper."""
    for module in model.modules():
        same = getattr(module, "config", None) is owner.config
        if same and _is_attention(module) and NAME not in vars(module):
            setattr(module, NAME, dense)
