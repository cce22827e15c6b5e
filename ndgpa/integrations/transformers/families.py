"""The models that are known: what grid their tokens lie on, and which modules attend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ndgpa.integrations.transformers.attention import GRID

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """What there is to know about a kind of model.

    Args:
        attention: The class of its attention modules.
        rank: The axes of the grid.
        prefix: Counts the tokens before the grid.
        fixed: Gives the grid of a model that has always the same; None for another.
        of_call: Gives the grid of a call from its first input; None where the number of tokens
            says it.
        time: Whether the only axis is time.
    """

    attention: str
    rank: int
    prefix: Callable[[Any], int] = lambda config: 0
    fixed: Callable[[Any], Shape] | None = None
    of_call: "CallGrid | None" = None
    time: bool = False


@dataclass(frozen=True)
class CallGrid:
    """The grid of a call, as a forward pre-hook that hands it down to the attention modules.

    It travels with the call as a keyword, so that what is recomputed in a backward, or runs in
    another thread, has the grid of its own input.

    Args:
        name: The keyword of the input.
        shape: Gives the grid from the config and the shape of the input.
    """

    name: str
    shape: Callable[[Any, Shape], Shape]

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = kwargs.get(self.name, args[0] if args else None)
        if x is None:  # the model has an error of its own
            return args, kwargs
        return args, {**kwargs, GRID: self.shape(model.config, tuple(x.shape))}


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


PICTURE = CallGrid("pixel_values", _patches)


def _picture(attention: str, prefix: Callable[[Any], int]) -> Family:
    return Family(attention, 2, prefix, of_call=PICTURE)


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
    "Wav2Vec2Model": Family("Wav2Vec2Attention", 1),
    "HubertModel": Family("HubertAttention", 1),
    "WhisperEncoder": Family("WhisperAttention", 1),
    "LlamaModel": Family("LlamaAttention", 1, time=True),
    "Qwen2Model": Family("Qwen2Attention", 1, time=True),
    "Qwen3Model": Family("Qwen3Attention", 1, time=True),
    "MistralModel": Family("MistralAttention", 1, time=True),
}
