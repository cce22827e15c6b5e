"""The models that are known: what grid their tokens lie on, and which modules attend."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ndgpa.integrations.spaces import GivenGrid, Shape
from ndgpa.integrations.transformers.attention import INPUT


@dataclass(frozen=True)
class Family:
    """What there is to know about a kind of model.

    Args:
        attention: The class of its attention modules.
        rank: The axes of the grid.
        prefix: Counts the tokens before the grid.
        fixed: Gives the grid of a model that has always the same; None for another.
        input: What the grid of a call follows from, where it is not fixed.
        time: Whether the only axis is time.
    """

    attention: str
    rank: int
    prefix: Callable[[Any], int] = lambda config: 0
    fixed: Callable[[Any], Shape] | None = None
    input: "Input | None" = None
    time: bool = False

    def grid_of(self, owner: str, config: Any) -> GivenGrid:
        """Say what the grid is: always the same, or how it follows from the input's shape."""
        if self.fixed is not None:
            return self.fixed(config)
        if self.input is None or self.input.grid is None:
            return None
        return partial(_from_input, owner, self.input.grid, config)


def _from_input(
    owner: str, grid: Callable[[Any, Shape], Shape], config: Any, shape: Shape | None
) -> Shape:
    if shape is None:
        raise ValueError(
            f"the grid of these tokens is not known: call {owner}, which has the picture, and not "
            "a part of it"
        )
    return grid(config, shape)


@dataclass(frozen=True)
class Input:
    """What the grid of a call follows from, as a forward pre-hook of the model.

    The hook hands the input down to the attention modules as a keyword, for its shape. So what is
    recomputed in a backward, or runs in another thread, goes by its own input.

    Args:
        name: The keyword of the input.
        grid: Gives the grid from the config and the shape of the input; None where the number of
            tokens says it.
    """

    name: str
    grid: Callable[[Any, Shape], Shape] | None = None

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, INPUT: kwargs.get(self.name, args[0] if args else None)}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _patches(config: Any, shape: Shape) -> Shape:
    return tuple(side // patch for side, patch in zip(shape[-2:], _pair(config.patch_size)))


def _tubes(config: Any) -> Shape:
    image = _patches(config, _pair(config.image_size))
    return (config.num_frames // config.tubelet_size, *image)


def _spectrogram(config: Any) -> Shape:
    """Mel bands, then time: overlapping patches."""
    sizes = (config.num_mel_bins, config.max_length)
    strides = (config.frequency_stride, config.time_stride)
    return tuple((size - config.patch_size) // step + 1 for size, step in zip(sizes, strides))


def _frames(config: Any) -> Shape:
    return (config.max_source_positions,)


PICTURE = Input("pixel_values", _patches)


def _picture(attention: str, prefix: Callable[[Any], int]) -> Family:
    return Family(attention, 2, prefix, input=PICTURE)


def _text(attention: str) -> Family:
    return Family(attention, 1, input=Input("input_ids"), time=True)


def _class_token(config: Any) -> int:
    return 1


def _class_token_and_registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _two_tokens(config: Any) -> int:
    return 2


FAMILIES = {
    "ViTModel": _picture("ViTAttention", _class_token),
    "DeiTModel": _picture("DeiTAttention", _two_tokens),
    "Dinov2Model": _picture("Dinov2Attention", _class_token),
    "Dinov2Backbone": _picture("Dinov2Attention", _class_token),
    "Dinov2WithRegistersModel": _picture(
        "Dinov2WithRegistersAttention", _class_token_and_registers
    ),
    "Dinov2WithRegistersBackbone": _picture(
        "Dinov2WithRegistersAttention", _class_token_and_registers
    ),
    "DINOv3ViTModel": _picture("DINOv3ViTAttention", _class_token_and_registers),
    "DINOv3ViTBackbone": _picture("DINOv3ViTAttention", _class_token_and_registers),
    "ASTModel": Family("ASTAttention", 2, _two_tokens, fixed=_spectrogram),
    "VideoMAEModel": Family("VideoMAESelfAttention", 3, fixed=_tubes),
    "Wav2Vec2Model": Family("Wav2Vec2Attention", 1, input=Input("input_values")),
    "HubertModel": Family("HubertAttention", 1, input=Input("input_values")),
    "WhisperEncoder": Family("WhisperAttention", 1, fixed=_frames),
    "LlamaModel": _text("LlamaAttention"),
    "Qwen2Model": _text("Qwen2Attention"),
    "Qwen3Model": _text("Qwen3Attention"),
    "MistralModel": _text("MistralAttention"),
}
