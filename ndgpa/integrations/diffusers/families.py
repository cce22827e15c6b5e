"""The models that are known: which of their modules attend to a latent, and where its grid is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.utils.hooks import RemovableHandle

from ndgpa.integrations.diffusers import attention, grids
from ndgpa.integrations.diffusers.attention import Processor
from ndgpa.integrations.diffusers.grids import GridOf, PassAsKeyword, TieToRotary

Follow = Callable[[nn.Module], list[RemovableHandle]]


@dataclass(frozen=True)
class Family:
    """What there is to know about a kind of model.

    Args:
        processor: What attends in place of the library's processor.
        blocks: The classes of its blocks.
        attention: The name of self-attention within a block.
        follow: Hooks the model so that the grid travels with a call.
    """

    processor: type[Processor]
    blocks: tuple[str, ...]
    attention: str
    follow: Follow

    def self_attention(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """List the self-attention of the model with its names, in order."""
        for name, block in model.named_modules():
            if type(block).__name__ in self.blocks:
                attn = block.get_submodule(self.attention)
                if not getattr(attn, "is_cross_attention", False):
                    yield f"{name}.{self.attention}", attn


def _by_rotary(module: str, grid_of: GridOf) -> Follow:
    def follow(model: nn.Module) -> list[RemovableHandle]:
        rope = model.get_submodule(module)
        return [rope.register_forward_hook(TieToRotary(grid_of), with_kwargs=True)]

    return follow


def _by_keyword(argument: str, grid_of: GridOf, of: str | None = None) -> Follow:
    """Hook the model itself, or each of its parts of one class."""

    def follow(model: nn.Module) -> list[RemovableHandle]:
        parts = [model] if of is None else [x for x in model.modules() if type(x).__name__ == of]
        tell = PassAsKeyword(argument, grid_of)
        handles = [x.register_forward_pre_hook(tell, with_kwargs=True) for x in parts]
        return handles + [
            x.register_forward_pre_hook(grids.drop_keyword, with_kwargs=True)
            for x in model.modules()
            if getattr(x, "is_cross_attention", False)
        ]

    return follow


_WAN = Family(
    attention.Wan,
    ("WanTransformerBlock", "WanVACETransformerBlock"),
    "attn1",
    _by_rotary("rope", grids.of_wan),
)

FAMILIES = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "LTXVideoTransformer3DModel": Family(
        attention.LTX,
        ("LTXVideoTransformerBlock",),
        "attn1",
        _by_rotary("rope", grids.of_ltx),
    ),
    "HunyuanVideoTransformer3DModel": Family(
        attention.Hunyuan,
        tuple(
            f"HunyuanVideo{replace}{single}TransformerBlock"
            for replace in ("", "TokenReplace")
            for single in ("", "Single")
        ),
        "attn",
        _by_rotary("rope", grids.of_hunyuan),
    ),
    "CogVideoXTransformer3DModel": Family(
        attention.CogVideoX,
        ("CogVideoXBlock",),
        "attn1",
        _by_keyword("attention_kwargs", grids.of_cogvideox),
    ),
    "FluxTransformer2DModel": Family(
        attention.Flux,
        ("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        "attn",
        _by_keyword("joint_attention_kwargs", grids.of_flux),
    ),
    "DiTTransformer2DModel": Family(
        attention.Plain,
        ("BasicTransformerBlock",),
        "attn1",
        _by_keyword("cross_attention_kwargs", grids.of_patches),
    ),
    "UNet2DConditionModel": Family(
        attention.Plain,
        ("BasicTransformerBlock",),
        "attn1",
        _by_keyword("cross_attention_kwargs", grids.of_pixels, of="Transformer2DModel"),
    ),
}
