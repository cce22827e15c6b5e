"""timm: turn the attention of a vision transformer into GPA, and back.

    model = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=True, img_size=518)
    enable(model, rule=12, block=4)
    features = model(pictures)
    disable(model)

The attention modules keep their weights and names, and everything around the attention itself:
norms, rotary embedding, gates, projections. Needs the extra `timm`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ndgpa.attention.far_field import Far
from ndgpa.functional import as_rule, gpa
from ndgpa.integrations.spaces import Blocks, GridSpace, PerAxis, Shape, wanted_layers
from ndgpa.selection import Rule
from ndgpa.structures import Sampling

OPTIONS = "ndgpa"  # what an attention module that has changed was told
FUSED = "ndgpa_fused"  # whether it called torch's fused attention before


@dataclass(frozen=True)
class Options:
    """What an attention module was told by `enable`."""

    space: GridSpace
    rule: Rule
    read: Sampling | None
    far: Far | None
    backend: str | None
    ignore_dropout: bool

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n d"],
        value: Float[Tensor, "b hk n d"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "b h n d"]:
        """Attend with GPA where `scaled_dot_product_attention` was asked."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("GPA in a timm model takes no attn_mask and no is_causal")
        if dropout_p and not self.ignore_dropout:
            raise NotImplementedError(
                f"the model drops out {dropout_p} of its attention weights in training, which GPA "
                "does not: make it with attn_drop_rate=0, or pass ignore_dropout=True to enable"
            )
        return gpa(
            query,
            key,
            value,
            self.space.of(query.shape[2], None),
            self.rule,
            scale=scale,
            read=self.read,
            far=self.far,
            backend=self.backend,
        )


class Instead(TorchFunctionMode):
    """Call a function where `scaled_dot_product_attention` is called, in this thread."""

    def __init__(self, attend: Options) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        return func(*args, **kwargs)


class GPAAttention(Attention):  # type: ignore[misc]
    """`timm.layers.Attention` with GPA."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with Instead(getattr(self, OPTIONS)):
            return super().forward(*args, **kwargs)


class GPAAttentionRope(AttentionRope):  # type: ignore[misc]
    """`timm.layers.AttentionRope` with GPA."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with Instead(getattr(self, OPTIONS)):
            return super().forward(*args, **kwargs)


class GPAEvaAttention(EvaAttention):  # type: ignore[misc]
    """`timm.models.eva.EvaAttention` with GPA."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with Instead(getattr(self, OPTIONS)):
            return super().forward(*args, **kwargs)


SWAPS: dict[type, type] = {
    Attention: GPAAttention,
    AttentionRope: GPAAttentionRope,
    EvaAttention: GPAEvaAttention,
}
BACK = {new: old for old, new in SWAPS.items()}


class PatchGrid:
    """The grid of a model's patches, as it is when asked (`set_input_size` changes it)."""

    def __init__(self, patch_embed: nn.Module) -> None:
        self.patch_embed: Any = patch_embed

    def __call__(self, shape: Shape | None) -> Shape:
        return tuple(self.patch_embed.grid_size)


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
    ignore_dropout: bool = False,
) -> list[str]:
    """Turn the self-attention of a timm `VisionTransformer` or `Eva` into GPA, in place.

    Class and register tokens read everything and are read by all. Call it again for other layers
    with another rule.

    Args:
        model: The model, with one size of pictures.
        rule, block, cell, layers, read, far, backend, ignore_dropout: As for
            `ndgpa.integrations.transformers.enable`.

    Returns:
        The names of the attention modules that have changed.

    Raises:
        NotImplementedError: The model, or the attention of a layer, is of another kind (windows,
            relative position biases), or the model takes pictures of any size.
        ValueError, TypeError: An argument does not fit.
    """
    _check_model(model)
    vit: Any = model
    attention = [(f"blocks.{number}.attn", x.attn) for number, x in enumerate(vit.blocks)]
    blocks = Blocks(block, cell, prefix=vit.num_prefix_tokens)
    space = GridSpace(type(vit).__name__, blocks, 2, PatchGrid(vit.patch_embed))
    options = Options(space, as_rule(rule), read, far, backend, ignore_dropout)
    wanted = wanted_layers(layers, len(attention))
    for number in wanted:
        _swap(attention[number][1], options)
    return [attention[number][0] for number in wanted]


def disable(model: nn.Module) -> None:
    """Give a model the attention back that it had before `enable`; nothing where it has that."""
    for module in model.modules():
        if type(module) in BACK:
            module.__class__ = BACK[type(module)]
            module.fused_attn = vars(module).pop(FUSED)
            del vars(module)[OPTIONS]


def _swap(module: Any, options: Options) -> None:
    setattr(module, OPTIONS, options)
    if type(module) in SWAPS:
        setattr(module, FUSED, module.fused_attn)
        module.fused_attn = True
        module.__class__ = SWAPS[type(module)]


def _check_model(model: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, VisionTransformer | Eva):
        raise NotImplementedError(
            f"{name} is not known to ndgpa, only VisionTransformer and Eva (ViT, DeiT, DINOv2, "
            "DINOv3, EVA02 and others)"
        )
    if getattr(model, "dynamic_img_size", False):
        raise NotImplementedError(
            f"this {name} takes pictures of any size (dynamic_img_size), whose grid its blocks are "
            "not told: make it with dynamic_img_size=False and img_size=..."
        )
    for number, layer in enumerate(model.blocks):
        kind = type(getattr(layer, "attn", None))
        if kind not in SWAPS and kind not in BACK:
            raise NotImplementedError(
                f"layer {number} of {name} attends with {kind.__name__}, which ndgpa does not know"
            )
